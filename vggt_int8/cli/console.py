"""Console output: two consoles, progress display, JSON document or text.

Results go to stdout: text with `say` and `show`, or one JSON document with `document`. Everything else goes to stderr.
"""

import contextlib
import ctypes
import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

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

from vggt_int8.encoding import one_line

DOCUMENT_FORMAT = 1  # of the documents of --json; a field that changes its meaning raises it, a new one does not
WIDE = 10_000  # characters: more than any table has

# No emoji codes: ":key:" may be part of a file name.
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
    """Print one line of results verbatim: without markup, colours or wrapping."""
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def show(*tables: Table) -> None:
    """Print tables of results: fitted to the width of a terminal, at full width otherwise, for programs and files."""
    console = out if out.is_terminal else Console(file=out.file, width=WIDE, emoji=False)
    console.print(*tables)


def document(command: str, content: dict[str, Any]) -> None:
    """Print the result as one JSON document on stdout: the output with `--json`.

    Strict ASCII JSON, regardless of the console's encoding. Numbers that are not finite are the strings "Infinity",
    "-Infinity" and "NaN", which `float()` accepts.
    """
    whole = {"format_version": DOCUMENT_FORMAT, "command": command, **content}
    stream = settings.stdout or out.file
    stream.write(json.dumps(_strict(whole), indent=2, allow_nan=False) + "\n")
    stream.flush()  # now: a full disk or a reader that has gone is an error of this command


@contextmanager
def documents_only() -> Iterator[None]:
    """Within the block only `document` writes to stdout. Anything else that libraries, C code or child processes print
    there goes to stderr.
    """
    true_stdout = sys.stdout
    try:
        with redirect_stdout(sys.stderr), _descriptor_for_documents(true_stdout) as settings.stdout:
            yield
    finally:
        settings.stdout = None


@contextmanager
def _descriptor_for_documents(stdout: TextIO) -> Iterator[TextIO]:
    """A new stream to the target of file descriptor 1, while descriptor 1 is redirected to stderr. Returns `stdout`
    itself if it does not use that descriptor.

    `redirect_stdout` only affects Python's `print`: compiled code uses the descriptor.
    """
    if not isinstance(stdout, io.TextIOWrapper) or not _is_descriptor(stdout, 1):
        yield stdout
        return
    stdout.flush()
    with os.fdopen(os.dup(1), "w", encoding="ascii") as documents:
        elsewhere = os.dup(2) if sys.stderr is not None else os.open(os.devnull, os.O_WRONLY)
        os.dup2(elsewhere, 1)
        os.close(elsewhere)
        try:
            yield documents
        finally:
            with contextlib.suppress(AttributeError, OSError):  # no C library that can be asked, so nothing of it waits
                ctypes.CDLL(None).fflush(None)
            os.dup2(documents.fileno(), 1)


def _is_descriptor(stream: TextIO, number: int) -> bool:
    try:
        return stream.fileno() == number
    except (OSError, ValueError):  # of a test, or closed
        return False


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _strict(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return str(value) if isinstance(value, Path) else value


def note(text: str) -> None:
    """Print one line of progress to stderr, formatted like `say`. Suppressed by --quiet."""
    if not settings.quiet:
        err.print(text, markup=False, highlight=False, soft_wrap=True)


def complain(message: str) -> None:
    """Print an error as one line to stderr."""
    err.print(f"[bold red]Error:[/] {escape(one_line(message))}", highlight=False, soft_wrap=True)


@contextmanager
def step(what: str, *, images: int = 0) -> Iterator[Callable[[int, int], None]]:
    """Show a spinner with the elapsed time while the block runs, and one line with the total time at the end.

    Yields a function of (done, total) that turns the spinner into a progress bar. --quiet suppresses both.

    images: number of images that the block processes; if it is given, images per second are shown.
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

        def update(done: int, total: int) -> None:
            speed = _rate(done, start) if images else ""
            progress.update(task, completed=done, total=total, count=f"{done}/{total}{speed}")

        yield update
    taken = f"{time.perf_counter() - start:.1f} s{_rate(images, start)}" + (_memory() if settings.verbose else "")
    err.print(f"{escape(what)} [dim]{taken}[/dim]", highlight=False, soft_wrap=True)


def _rate(images: int, start: float) -> str:
    """For example ", 8.3 images/s"."""
    rate = images / max(time.perf_counter() - start, 1e-6)
    return f", {rate:{'.0f' if rate >= 100 else '.3g'}} images/s" if images else ""


def _memory() -> str:
    from vggt_int8.export.report import peak_rss

    peak = peak_rss()
    return "" if peak is None else f", at most {peak / 1e6:,.0f} MB of memory so far"


def detail(text: Callable[[], str]) -> None:
    """Print to stderr under --verbose only; otherwise `text` is not called."""
    if settings.verbose:
        err.print(text(), markup=False, highlight=False, soft_wrap=True)


@contextmanager
def download_bars() -> Iterator[Progress]:
    """Progress bars in bytes, one task per transfer."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=settings.quiet or not err.is_terminal) as progress:
        yield progress


def count_images(number: int) -> str:
    """ "1 image", "2 images"."""
    return f"{number} image" if number == 1 else f"{number} images"


def megabytes(size: float) -> str:
    """Bytes for tables: "1,277.3 MB"."""
    return f"{size / 1e6:,.1f} MB"
