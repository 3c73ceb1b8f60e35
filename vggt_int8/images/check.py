"""Whether files can be opened as images, before any is decoded and before a model is loaded."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from vggt_int8.images.decode import read_header
from vggt_int8.images.names import some_names

_FRAMES = {  # what frames after the first are; else simply frames
    "MPO": "the others are its preview, gain map or the other eye of a stereo camera",
    "PSD": "the others are its layers",
    "TIFF": "save the other pages as files of their own to use them",
}


def check_images(paths: Sequence[Path], *, max_pixels: int | None = None, stacklevel: int = 1) -> None:
    """Open every file without decoding it: raises as `load_images`, warns of files with several frames."""
    frames: dict[tuple[str, int], list[str]] = {}
    for path in paths:
        header = read_header(path, max_pixels=max_pixels)
        if header.frames > 1:
            frames.setdefault((header.format, header.frames), []).append(path.name)
    if frames:
        groups = "; ".join(
            f"{some_names(names)} ({kind}, {count} frames{'' if len(names) == 1 else ' each'}"
            f"{f': {_FRAMES[kind]}' if kind in _FRAMES else ''})"
            for (kind, count), names in frames.items()
        )
        warnings.warn(
            f"files hold several frames, of which the first alone is used: {groups}", stacklevel=stacklevel + 1
        )
