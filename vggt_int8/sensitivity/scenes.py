"""Scenes to measure on: folders of photographs, stored scenes, or rendered ones. Each has two images or more."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from vggt_int8.images import Mode, find_images, read_images
from vggt_int8.scenes import load_scene, render_scenes, scene_seeds

FEWEST = 2  # images: one has no direction of translation


@dataclass(frozen=True)
class Scene:
    """images [S, 3, H, W] in [0, 1], on the CPU."""

    name: str
    images: Tensor

    @property
    def size(self) -> tuple[int, int]:
        return self.images.shape[-2], self.images.shape[-1]

    def digest(self) -> str:
        """sha256 over sizes and pixels."""
        total = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        total.update(self.images.contiguous().numpy().tobytes())
        return total.hexdigest()


@dataclass(frozen=True)
class Source:
    """Where a scene is: files of photographs, or a folder that `vggt-int8 scenes render` wrote."""

    name: str
    files: tuple[Path, ...] = ()
    stored: Path | None = None

    def load(self, config: Any, mode: str, max_pixels: int | None = None) -> Scene:
        """At the size that the model of `config` was made for; a stored scene at its own. Raises ValueError for a
        stored scene that has one view, or whose size is no multiple of the model's patches."""
        if self.stored is None:
            fit = cast("Mode", mode)  # an unknown one raises ValueError there
            return Scene(self.name, read_images(self.files, fit, model=config, max_pixels=max_pixels)[0])
        images = load_scene(self.stored).images
        _check_size(f"{self.stored} is", images.shape[-2], images.shape[-1], config.patch_size)
        return _checked(Scene(self.name, images), str(self.stored))


def find_scenes(arguments: Sequence[str]) -> list[Source]:
    """Arguments of the command line -> scenes: each folder is one, a folder of stored scenes as many as it holds, all
    files and patterns together one.

    Raises what `find_images` raises, and ValueError for a scene with one image.
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
        found += [Source(str(path), stored=path) for path in stored] or [_photographs(argument, [argument])]
    if loose:
        found.append(_photographs(loose[0] if len(loose) == 1 else f"{loose[0]} and others", loose))
    return found


def rendered_scenes(
    count: int, views: int, size: tuple[int, int], split: str, patch_size: int, device: str
) -> list[Scene]:
    """The first `count` procedural scenes of a split, `views` images of `size` (H, W) each, rendered on `device`."""
    _check_size("--size is", *size, patch_size)
    batches = (render_scenes(scene_seeds(split, [index]), views, size, device=device) for index in range(count))
    return [Scene(f"{split} {index}", batch.images[0].cpu()) for index, batch in enumerate(batches)]


def _photographs(name: str, arguments: Sequence[str]) -> Source:
    files = find_images(list(arguments))
    if len(files) < FEWEST:
        raise ValueError(_TOO_FEW.format(name))
    return Source(name, tuple(files))


_TOO_FEW = "{} has one image: poses are compared between pairs of views, so give at least two of a scene"


def _checked(scene: Scene, name: str) -> Scene:
    if len(scene.images) < FEWEST:
        raise ValueError(_TOO_FEW.format(name))
    return scene


def _check_size(what: str, height: int, width: int, patch_size: int) -> None:
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"{what} {height} {width} pixels: height and width must be multiples of the model's patch size {patch_size}"
        )
