"""Suppress console output of libraries: warnings, log lines and progress bars."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.markup import escape

from vggt_int8.cli import console

PACKAGE = str(Path(__file__).parent.parent)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Suppress warnings, log lines and progress bars of libraries; show this package's warnings.

    Under --verbose, warnings and log lines of libraries are shown from level INFO on.
    """
    if console.settings.verbose:
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
    """Show log records of all libraries from level INFO on stderr."""
    handler = logging.StreamHandler(console.err.file)
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
    """Disable progress bars of huggingface_hub and transformers. transformers is slow to import and takes over the
    setting of huggingface_hub.
    """
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
        console.err.print(f"[yellow]Warning:[/] {escape(str(message))}", highlight=False, soft_wrap=True)
