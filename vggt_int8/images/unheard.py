"""Silences Pillow's warnings (mostly about metadata), which as errors would look like corrupted files; some are
collected.

Python has one list of warning filters for the whole process, so `warnings.catch_warnings` in overlapping threads leaves
the filters of one to all others. `unheard` therefore changes them once for all threads inside it, and restores them
after the last one; `listening` collects the warnings of its own thread.
"""

import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import PIL

_PILLOW = str(Path(PIL.__file__).parent)
_ears = threading.local()
_lock, _changed, _inside = threading.Lock(), ExitStack(), 0


@contextmanager
def unheard() -> Iterator[None]:
    """While the block runs, warnings that come from Pillow, in any thread, go to `listening` threads alone."""
    global _inside
    with _lock:
        if not _inside:
            _changed.enter_context(_sorted_out())
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _changed.close()


@contextmanager
def _sorted_out() -> Iterator[None]:
    with warnings.catch_warnings():
        show = warnings.showwarning

        def sort_out(message: Any, category: Any, filename: str, *rest: Any, **named: Any) -> None:
            if filename.startswith(_PILLOW):
                getattr(_ears, "heard", []).append(str(message))
            else:
                show(message, category, filename, *rest, **named)

        warnings.filterwarnings("always", module=r"PIL\b")
        warnings.showwarning = sort_out
        yield


@contextmanager
def listening() -> Iterator[list[str]]:
    """What Pillow warns of in this thread during the block; empty outside of `unheard`."""
    before = getattr(_ears, "heard", None)
    _ears.heard = heard = []  # type: ignore[var-annotated]
    try:
        yield heard
    finally:
        if before is None:
            del _ears.heard
        else:
            _ears.heard = before
