"""Convert exceptions of a command to one line and an exit code: `guarded` wraps every subcommand.

Output of libraries is suppressed meanwhile; only this package's own warnings are shown. With `--debug` nothing is
changed, so everything is visible.
"""

import contextlib
import errno
import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import ParamSpec

import typer

from vggt_int8 import interrupts
from vggt_int8.cli import console
from vggt_int8.cli.libraries import quiet_libraries
from vggt_int8.disk import message_of

P = ParamSpec("P")


def guarded(command: Callable[P, None], *, libraries: bool = True) -> Callable[P, None]:
    """Run a subcommand without output of libraries; convert exceptions to one line and an exit code.

    libraries: False for a command that uses none: suppressing their output imports them, which takes seconds.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        if console.settings.debug:
            try:
                command(*args, **kwargs)
            except KeyboardInterrupt as error:
                console.err.print_exception()
                raise typer.Exit(interrupts.exit_code(error)) from None
            return
        try:
            with unread_output_ends(), quiet_libraries() if libraries else nullcontext():
                command(*args, **kwargs)
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt as error:
            interrupts.tell(error)
            raise typer.Exit(interrupts.exit_code(error)) from None
        except Exception as error:  # the outermost frame: everything becomes a message and an exit code
            message, code = _explain(error)
            console.complain(message)
            raise typer.Exit(code) from None

    return run


@contextmanager
def unread_output_ends() -> Iterator[None]:
    """Exit with code 1 if the reader of stdout (such as `head`) is gone or the disk is full; only the latter prints an
    error.
    """
    try:
        yield
    except OSError as error:
        # All other files of the package have names.
        if not isinstance(error, BrokenPipeError) and (error.errno != errno.ENOSPC or error.filename is not None):
            raise
        with contextlib.suppress(OSError, ValueError):  # else Python complains again when it flushes at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), (console.settings.stdout or sys.stdout).fileno())
        if not isinstance(error, BrokenPipeError):
            console.complain(f"standard output: {error.strerror}")
        sys.exit(1)


def _explain(error: Exception) -> tuple[str, int]:
    """Message and exit code: 2 for errors in the user's input, 1 otherwise."""
    text = message_of(error)
    bad_input = (ValueError, TypeError, FileNotFoundError, FileExistsError, NotADirectoryError)
    if isinstance(error, (*bad_input, IsADirectoryError, PermissionError, _backend_error())) and text:
        return text, 2
    if isinstance(error, OSError | RuntimeError | FloatingPointError) and text:
        return text, 1
    return f"{type(error).__name__}: {text}. Run with `vggt-int8 --debug …` to see where.", 1


def _backend_error() -> type[Exception] | tuple[()]:
    """`BackendError`, for an `except` clause. Its module loads PyTorch; if it is not imported, the error cannot
    occur.
    """
    backends = sys.modules.get("vggt_int8.quant.backends")
    return () if backends is None else backends.BackendError
