"""Scenes to measure on, as pixels: from photographs, stored scenes or rendered scenes."""

import hashlib
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from vggt_int8.images import Mode, read_images
from vggt_int8.scenes import load_scene, render_scenes, scene_seeds
from vggt_int8.sensitivity.sources import FEWEST, TOO_FEW, Source


@dataclass(frozen=True)
class Scene:
    """images [S, 3, H, W] in [0, 1] on the CPU; S is at least two."""

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


def read_scene(source: Source, config: Any, mode: str, max_pixels: int | None = None) -> Scene:
    """Read photographs at the input size of the model of `config`, or a stored scene at its own size. Raises the errors
    of `read_images` and `load_scene`, and ValueError for a stored scene with one view or with a size that is not a
    multiple of the model's patch size.
    """
    if source.stored is None:
        fit = cast("Mode", mode)  # an unknown one raises ValueError there
        return Scene(source.name, read_images(source.files, fit, model=config, max_pixels=max_pixels)[0])
    scene = Scene(source.name, load_scene(source.stored).images)
    if len(scene.images) < FEWEST:
        raise ValueError(TOO_FEW.format(source.stored))
    _check_size(str(source.stored), scene.size, config.patch_size)
    return scene


def render(count: int, views: int, size: tuple[int, int], split: str, patch_size: int, device: str) -> list[Scene]:
    """Render the first `count` procedural scenes of a split, each with `views` images of `size` (H, W), on `device`."""
    _check_size("--size", size, patch_size)
    batches = (render_scenes(scene_seeds(split, [index]), views, size, device=device) for index in range(count))
    return [Scene(f"{split} {index}", batch.images[0].cpu()) for index, batch in enumerate(batches)]


def _check_size(what: str, size: tuple[int, int], patch_size: int) -> None:
    height, width = size
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"{what} is {height} {width} pixels: height and width must be multiples of the model's patch size "
            f"{patch_size}"
        )
