"""Loading a checkpoint while another process saves into its folder: the old one or the new one, never a mixture.

A save exchanges files by renames, between which a reader that opens one file after another can fall. So the state of
the folder is compared before and after.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from vggt_int8.saves.errors import CheckpointError
from vggt_int8.saves.plain_files import SINGLE_FILES

Loaded = TypeVar("Loaded")


def load_settled(source: str, subfolder: str | None, load: Callable[[], Loaded]) -> Loaded:
    """The result of `load`, if the folder or file does not change meanwhile; otherwise `load` is called once more.

    Raises `CheckpointError` if it has changed again; otherwise what `load` raises.
    """
    for _ in range(2):
        before = _state(Path(source), subfolder)
        try:
            loaded = load()
        except Exception as error:
            if _state(Path(source), subfolder) == before:
                raise
            cause: Exception | None = error
        else:
            if _state(Path(source), subfolder) == before:
                return loaded
            cause = None
    raise CheckpointError(
        f"{source} was replaced again and again while it was being loaded: load it when the saves into it are over"
    ) from cause


def _state(source: Path, subfolder: str | None) -> dict[str, tuple[int, ...]]:
    """Which files a load may read, and which ones they are; nothing for a Hub id, whose files never change."""
    folder = source / (subfolder or "")
    found: dict[str, tuple[int, ...]] = {}
    try:
        paths = list(folder.iterdir()) if folder.is_dir() else [source, source.parent / "config.json"]
    except OSError:
        return {}
    for path in paths:
        if path.suffix in (*SINGLE_FILES, ".json"):
            try:
                file = path.stat()
            except OSError:
                continue
            found[path.name] = (file.st_ino, file.st_size, file.st_mtime_ns, file.st_ctime_ns)
    return found
