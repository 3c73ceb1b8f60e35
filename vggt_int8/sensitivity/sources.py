"""Find scenes: each folder of photographs is a scene, files together are one scene, and there are folders of stored
scenes.

This module does not import PyTorch, so missing files are reported immediately.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vggt_int8.images import check_images, find_images

FEWEST = 2  # images of a scene: one has no direction of translation
TOO_FEW = "{} has one image: poses are compared between pairs of views, so give at least two of a scene"


@dataclass(frozen=True)
class Source:
    """One scene: image files, or a folder written by `vggt-int8 scenes render`."""

    name: str
    files: tuple[Path, ...] = ()
    stored: Path | None = None


def find_scenes(arguments: Sequence[str], max_pixels: int | None = None) -> list[Source]:
    """Convert command-line arguments to scenes: each folder of images is one scene, a folder of stored scenes gives all
    scenes in it, and all files and patterns together are one scene.

    Raises the errors of `find_images` and `check_images`, and ValueError for a scene with one image or one given twice.
    """
    found: list[Source] = []
    loose = [argument for argument in arguments if not Path(argument).expanduser().is_dir()]
    for argument in arguments:
        folder = Path(argument).expanduser()
        if not folder.is_dir():
            continue
        stored = (
            [folder] if (folder / "scene.json").is_file() else sorted(p.parent for p in folder.glob("*/scene.json"))
        )
        found += [Source(str(path), stored=path) for path in stored] or [_photographs(argument, [argument], max_pixels)]
    if loose:
        name = loose[0] if len(loose) == 1 else f"{loose[0]} and others"
        found.append(_photographs(name, loose, max_pixels))
    names = [source.name for source in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{twice} is given twice: give every scene once")
    return found


def _photographs(name: str, arguments: Sequence[str], max_pixels: int | None) -> Source:
    files = find_images(list(arguments))
    check_images(files, max_pixels=max_pixels)
    if len(files) < FEWEST:
        raise ValueError(TOO_FEW.format(name))
    return Source(name, tuple(files))
