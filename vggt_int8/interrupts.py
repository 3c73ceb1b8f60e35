"""Ctrl-C, SIGTERM and SIGHUP end a command alike: unfinished work is cleaned up, and the exit code tells which it was.

Imports almost nothing, so that a command can handle signals while it is still importing everything else.
"""

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

WORDS = {signal.SIGINT: "Interrupted.", signal.SIGTERM: "Terminated.", signal.SIGHUP: "Hung up."}
DEAF_SECONDS = 3.0  # after a signal; later ones count again, since a library may have swallowed the exception


class Stopped(KeyboardInterrupt):
    """A signal asked the process to end. number: of the signal."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__()
        self.number = number


def exit_code(error: KeyboardInterrupt) -> int:
    """The shell's exit code for a process that the signal ended: 130, 143 or 129."""
    return 128 + (error.number if isinstance(error, Stopped) else signal.SIGINT)


def tell(error: KeyboardInterrupt) -> None:
    """Print one line on stderr, if that still exists."""
    with suppress(OSError, ValueError, AttributeError):
        print(WORDS[signal.Signals(exit_code(error) - 128)], file=sys.stderr, flush=True)


@contextmanager
def heeded() -> Iterator[None]:
    """Inside the block, the signals raise `Stopped` in the main thread, and the process then exits with their code.

    A second signal has no effect while the first is handled. Ignored signals (nohup) stay ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first: list[Stopped] = []
    heard_at = 0.0

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal heard_at
        if first and time.monotonic() - heard_at < DEAF_SECONDS:
            return
        heard_at = time.monotonic()
        first.append(Stopped(number))
        raise first[-1]

    before = {number: signal.getsignal(number) for number in WORDS}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, stop)
        yield
    except BaseException as error:
        if not first:
            raise
        for number in before:
            signal.signal(number, signal.SIG_IGN)  # the interpreter's own end is not to be disturbed either
        if isinstance(error, KeyboardInterrupt):
            tell(error)
        # An interrupt inside code that was compiled from a string (every dataclass is) leaves a mark in CPython, by
        # which `python -m` ends itself with SIGINT although the exception was caught. Another string takes it away.
        exec("")
        sys.exit(exit_code(first[0]))
    finally:
        if not first:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Defer signals that Python handles until the end of the block, for a few steps that must not be interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    late: list[tuple[int, FrameType | None]] = []
    handled: dict[int, Any] = {n: h for n in WORDS if callable(h := signal.getsignal(n))}
    try:
        for number in handled:
            signal.signal(number, lambda *caught: late.append(caught))
        yield
    finally:
        for number, handler in handled.items():
            signal.signal(number, handler)
        for number, frame in late:
            handled[number](number, frame)
