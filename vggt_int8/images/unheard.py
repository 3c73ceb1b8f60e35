"""Pillow's warnings (of metadata mostly) are neither shown nor, as errors, taken for damage; some are listened to.

Python keeps one list of filters for the whole process, so `warnings.catch_warnings` in threads that overlap leaves the
filters of one behind for all. `unheard` therefore changes them once for all threads that are in it, and puts them back
behind the last one; what Pillow warns of in a thread goes to whoever listens there.
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
