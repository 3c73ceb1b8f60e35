"""Silences Pillow's warnings (mostly about metadata), which as errors would look like corrupted files, and collects
them where they matter.

Python has one list of warning filters for the whole process, so `warnings.catch_warnings` in overlapping threads leaves
the filters of one to all others. `pillow_silenced` therefore changes them once for all threads inside it, and restores
them after the last one; `collected_warnings` collects the warnings of its own thread.
"""

import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import PIL

_PILLOW = str(Path(PIL.__file__).parent)
_collecting = threading.local()  # .found: the list of the innermost `collected_warnings` of a thread
_lock, _changed, _inside = threading.Lock(), ExitStack(), 0


@contextmanager
def pillow_silenced() -> Iterator[None]:
    """While the block runs, warnings that come from Pillow, in any thread, go to `collected_warnings` threads only."""
    global _inside
    with _lock:
        if not _inside:
            _changed.enter_context(_by_origin())
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _changed.close()


@contextmanager
def _by_origin() -> Iterator[None]:
    with warnings.catch_warnings():
        show = warnings.showwarning

        def show_or_collect(message: Any, category: Any, filename: str, *rest: Any, **named: Any) -> None:
            if filename.startswith(_PILLOW):
                getattr(_collecting, "found", []).append(str(message))
            else:
                show(message, category, filename, *rest, **named)

        warnings.filterwarnings("always", module=r"PIL\b")
        warnings.showwarning = show_or_collect
        yield


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """The texts of Pillow's warnings in this thread during the block; empty outside of `pillow_silenced`."""
    before = getattr(_collecting, "found", None)
    _collecting.found = found = []  # type: ignore[var-annotated]
    try:
        yield found
    finally:
        if before is None:
            del _collecting.found
        else:
            _collecting.found = before
