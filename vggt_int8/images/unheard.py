"""Pillow's warnings (of metadata mostly) are neither shown nor, as errors, taken for damage; some are listened to.

Python keeps one list of filters for the whole process, so `warnings.catch_warnings` in threads that overlap leaves the
filters of one behind for all. Whoever reads pictures therefore enters `unheard` in a thread of its own, once, and the
threads that decode for it change nothing: what Pillow warns of there goes to whoever listens in that thread.
"""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import PIL

_PILLOW = str(Path(PIL.__file__).parent)
_ears = threading.local()


@contextmanager
def unheard() -> Iterator[None]:
    """While the block runs, warnings that come from Pillow, in any thread, go to `listening` threads alone."""
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
