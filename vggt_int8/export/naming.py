"""Names of images in exports: relative to the folder that they share, unique, valid Unicode."""

import os
import re
from pathlib import Path, PurePosixPath

from vggt_int8.scene.scene import Scene


def image_root(scene: Scene) -> Path | None:
    """The deepest folder that holds all images' files; None if not all have one."""
    parents = [file.parent for file in scene.files if file is not None]
    return Path(os.path.commonpath(parents)) if parents and len(parents) == len(scene) else None


def image_names(scene: Scene) -> list[str]:
    """`photos/a/1.jpg`, `photos/b/1.jpg` -> `a/1.jpg`, `b/1.jpg`; without files the last part of each name.

    Bytes that are not UTF-8 are written as %E9. An image that is used twice gets a number the second time, and so does
    one whose name another has got that way.
    """
    root = image_root(scene)
    names: list[str] = []
    taken: set[str] = set()
    for name, file in zip(scene.names, scene.files, strict=True):
        path = PurePosixPath(file.relative_to(root).as_posix() if root and file else Path(name).name or name)
        text = "/".join(_portable(part) for part in path.parts if part not in ("/", ".."))
        plain, number = PurePosixPath(text or "image"), 1
        unique = plain
        while str(unique) in taken:
            number += 1
            unique = plain.with_name(f"{plain.stem}_{number}{plain.suffix}")
        taken.add(str(unique))
        names.append(str(unique))
    return names


def _portable(part: str) -> str:
    """A name as Unicode; what is not UTF-8 as %E9."""
    return re.sub("[\udc80-\udcff]", lambda match: f"%{ord(match[0]) - 0xDC00:02X}", part)
