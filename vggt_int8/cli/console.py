"""What the user sees: two consoles, progress lines, warnings and errors as single lines, library noise kept off.

`guarded` wraps every subcommand: it maps exceptions to messages and exit codes, and lets only this package's own
warnings through. With `--debug` it changes nothing, so that everything is visible.

Results go to stdout: text by `say` and `show`, or one JSON document by `document`. All else goes to stderr.
"""

import contextlib
import errno
import functools
import json
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TextIO

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from vggt_int8 import interrupts
from vggt_int8.encoding import one_line

PACKAGE = str(Path(__file__).parent.parent)
P = ParamSpec("P")

DOCUMENT_FORMAT = 1  # of the documents of --json; a field that changes its meaning raises it, a new one does not
WIDE = 10_000  # characters: more than any table has

# No emoji codes: ":key:" may be a part of a file's name.
out = Console(emoji=False)
err = Console(stderr=True, emoji=False)


@dataclass
class Settings:
    """Global options: see `vggt_int8.cli.options`."""

    quiet: bool = False
    verbose: bool = False
    debug: bool = False
    stdout: TextIO | None = None  # the true one under --json, while sys.stdout leads to stderr


settings = Settings()


def say(text: str) -> None:
    """One line of results, as it is: no markup, no colours, no wrapping."""
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def show(*tables: Table) -> None:
    """Tables of results: fitted to a terminal; whole anywhere else, where a program or a file reads them."""
    console = out if out.is_terminal else Console(file=out.file, width=WIDE, emoji=False)
    console.print(*tables)


def document(command: str, content: dict[str, Any]) -> None:
    """The whole result as one JSON document on stdout: what `--json` gives instead of text.

    Strict JSON in ASCII, whatever the console's encoding. Numbers that are not finite are the strings "Infinity",
    "-Infinity" and "NaN", which `float()` reads.
    """
    whole = {"format_version": DOCUMENT_FORMAT, "command": command, **content}
    stream = settings.stdout or out.file
    stream.write(json.dumps(_strict(whole), indent=2, allow_nan=False) + "\n")
    stream.flush()  # now: a full disk or a reader that has gone is an error of this command


@contextmanager
def documents_only() -> Iterator[None]:
    """Within the block nothing but `document` reaches stdout: what libraries print there goes to stderr."""
    settings.stdout = sys.stdout
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        settings.stdout = None


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _strict(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return str(value) if isinstance(value, Path) else value


def note(text: str) -> None:
    """One line of progress, as `say` writes results; nothing under --quiet."""
    if not settings.quiet:
        err.print(text, markup=False, highlight=False, soft_wrap=True)


def complain(message: str) -> None:
    """An error as one line on stderr."""
    err.print(f"[bold red]Error:[/] {escape(one_line(message))}", highlight=False, soft_wrap=True)


@contextmanager
def step(what: str) -> Iterator[Callable[[int, int], None]]:
    """A spinner with the elapsed time while the block runs; one line with the total when it is done.

    Yields a function of (done, all) that turns the spinner into a bar. Under --quiet nothing is shown.
    """
    if settings.quiet:
        yield lambda done, total: None
        return
    start = time.perf_counter()
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task(what, total=None, count="")
        yield lambda done, total: progress.update(task, completed=done, total=total, count=f"{done}/{total}")
    taken = f"{time.perf_counter() - start:.1f} s" + (_memory() if settings.verbose else "")
    err.print(f"{escape(what)} [dim]{taken}[/dim]", highlight=False, soft_wrap=True)


def _memory() -> str:
    from vggt_int8.export.report import peak_rss

    peak = peak_rss()
    return "" if peak is None else f", at most {peak / 1e6:,.0f} MB of memory so far"


def detail(text: Callable[[], str]) -> None:
    """What only --verbose shows, on stderr; `text` is not called otherwise."""
    if settings.verbose:
        err.print(text(), markup=False, highlight=False, soft_wrap=True)


@contextmanager
def download_bars() -> Iterator[Progress]:
    """Bars in bytes; each task is one transfer."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=settings.quiet or not err.is_terminal) as progress:
        yield progress


def guarded(command: Callable[P, None], *, libraries: bool = True) -> Callable[P, None]:
    """Run a subcommand with quiet libraries; turn what it raises into one line and an exit code.

    libraries: False for a command that uses none: quieting them imports them, which takes seconds.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        if settings.debug:
            try:
                command(*args, **kwargs)
            except KeyboardInterrupt as error:
                err.print_exception()
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
            complain(message)
            raise typer.Exit(code) from None

    return run


@contextmanager
def unread_output_ends() -> Iterator[None]:
    """Exit code 1 where the reader of stdout (`head`) has gone or its disk is full; the latter is said."""
    try:
        yield
    except OSError as error:
        # All other files of the package have names.
        if not isinstance(error, BrokenPipeError) and (error.errno != errno.ENOSPC or error.filename is not None):
            raise
        with contextlib.suppress(OSError, ValueError):  # else Python complains again when it flushes at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), (settings.stdout or sys.stdout).fileno())
        if not isinstance(error, BrokenPipeError):
            complain(f"standard output: {error.strerror}")
        sys.exit(1)


def _explain(error: Exception) -> tuple[str, int]:
    """Message and exit code: 2 where the user's input is at fault, 1 otherwise."""
    text = " ".join(str(error).split())
    bad_input = (ValueError, TypeError, FileNotFoundError, FileExistsError, NotADirectoryError)
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    if isinstance(error, (*bad_input, IsADirectoryError, PermissionError, _backend_error())) and text:
        return text, 2
    if isinstance(error, OSError | RuntimeError | FloatingPointError) and text:
        return text, 1
    return f"{type(error).__name__}: {text}. Run with `vggt-int8 --debug …` to see where.", 1


def _backend_error() -> type[Exception] | tuple[()]:
    """`BackendError`, whose module loads PyTorch: where that has not been imported, it has not been raised."""
    backends = sys.modules.get("vggt_int8.quant.backends")
    return () if backends is None else backends.BackendError


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep warnings, log lines and progress bars of libraries off the console; show this package's warnings.

    Under --verbose their warnings and log lines are shown, from INFO on.
    """
    if settings.verbose:
        with _log_lines(), _no_progress_bars():
            yield
        return
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.showwarning = _show_warning
            with _no_progress_bars():
                yield
    finally:
        logging.disable(disabled)


@contextmanager
def _log_lines() -> Iterator[None]:
    """Log records of all libraries on stderr, those of INFO included."""
    handler = logging.StreamHandler(err.file)
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    root, level = logging.getLogger(), logging.getLogger().level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Of huggingface_hub and of transformers, which is slow to import, and begins as it finds huggingface_hub."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    def of_transformers() -> Any:
        return sys.modules.get("transformers.utils.logging")

    hub_was_on, transformers_was_there = not are_progress_bars_disabled(), of_transformers() is not None
    transformers_was_on = of_transformers().is_progress_bar_enabled() if transformers_was_there else hub_was_on
    disable_progress_bars()
    if transformers_was_there:
        of_transformers().disable_progress_bar()
    try:
        yield
    finally:
        if transformers_was_on and of_transformers() is not None:
            of_transformers().enable_progress_bar()
        if hub_was_on:
            enable_progress_bars()


def _show_warning(message: Warning | str, category: type[Warning], filename: str, *_: Any, **__: Any) -> None:
    if filename.startswith(PACKAGE) and issubclass(category, UserWarning | RuntimeWarning):
        err.print(f"[yellow]Warning:[/] {escape(str(message))}", highlight=False, soft_wrap=True)


def count_images(number: int) -> str:
    """ "1 image", "2 images"."""
    return f"{number} image" if number == 1 else f"{number} images"


def megabytes(size: float) -> str:
    """Bytes for tables: "1,277.3 MB"."""
    return f"{size / 1e6:,.1f} MB"
