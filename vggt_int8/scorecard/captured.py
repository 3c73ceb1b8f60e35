"""Photographs with known cameras as scenes to score on: COLMAP folders and CO3Dv2. ETH3D's are in `eth3d.py`.

`PosedScenes` reads a COLMAP model of pinhole cameras and its images, upright and resized as `run` does; images of
different sizes in one scene are padded to the largest. The choice of a scene's images is a rule, so that everybody uses
the same ones: in the order of their names, evenly spaced, including the first and the last (`evenly`).
"""

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vggt_int8.data.camera import Camera, ModelError
from vggt_int8.data.co3d import ANNOTATIONS, categories, read_sequences
from vggt_int8.data.colmap import Model, PosedImage, find_model, is_model, read_model
from vggt_int8.export.repeat import add_samples
from vggt_int8.geometry import camera_center
from vggt_int8.images import ImageTransform, read_images
from vggt_int8.images.decode import read_orientation
from vggt_int8.listing import first_few
from vggt_int8.scorecard.data import TrueScene
from vggt_int8.scorecard.upright import turned_upright


def evenly(count: int, most: int | None) -> list[int]:
    """Indices of at most `most` of `count` items, evenly spaced, including the first and the last; all by default."""
    if most is None or most >= count:
        return list(range(count))
    return [round(i * (count - 1) / max(1, most - 1)) for i in range(most)]


@dataclass(frozen=True)
class Place:
    """One scene: its folder, that of its COLMAP model and that which names of images start at."""

    folder: Path
    model: Path
    images: Path


class PosedScenes:
    """COLMAP scenes: `folder` is one, or holds some. size: of the network's images (`config.img_size`, `patch_size`).

    scenes: no more than the first so many. views: of each, see `evenly`. Raises FileNotFoundError for a folder without
    a model or its images, and `ModelError` for a model that cannot be read.
    """

    kind = "colmap"

    def __init__(self, folder: Path, config: Any, scenes: int | None = None, views: int | None = None) -> None:
        self.config, self.views = config, views
        folder = Path(os.path.abspath(folder.expanduser()))  # else "." were the name of a scene
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is no folder")
        self.places, self._models = self._read(folder, scenes)
        for place in self.places:
            self._check(place)

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[TrueScene]:
        return map(self._scene, self.places)

    def identity(self) -> dict[str, Any]:
        """images: of each scene, those that are taken, in their order."""
        return {
            "kind": self.kind,
            "views": self.views or "all",
            "model_size": [self.config.img_size, self.config.patch_size],
            "scenes": {place.folder.name: self._digest(place) for place in self.places},
            "images": {place.folder.name: [image.name for image in self._chosen(place)] for place in self.places},
        }

    def _read(self, folder: Path, scenes: int | None) -> tuple[list[Place], dict[Path, Model]]:
        """The scenes, and the model of each by its folder."""
        places = self._find(folder)[:scenes]
        return places, {place.folder: read_model(place.model) for place in places}

    def _find(self, folder: Path) -> list[Place]:
        try:
            return [_place(folder)]
        except FileNotFoundError:
            below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
            found = []
            for path in below:
                try:
                    found.append(_place(path))
                except FileNotFoundError:
                    continue
            if not found:
                raise
            return found

    def _chosen(self, place: Place) -> list[PosedImage]:
        images = self._models[place.folder].images
        return [images[i] for i in evenly(len(images), self.views)]

    def _check(self, place: Place) -> None:
        for image in self._chosen(place):
            if not (place.images / image.name).is_file():
                raise FileNotFoundError(f"{place.images / image.name} is not there, which {place.model} names")
        for _, camera in self._upright(place):
            camera.intrinsic()  # raises for one that bends lines

    def _digest(self, place: Place) -> str:
        total = hashlib.sha256()
        for path in self._files(place):
            add_samples(total, path)
        return total.hexdigest()

    def _files(self, place: Place) -> list[Path]:
        """All that decides images and truth."""
        model = [path for path in sorted(place.model.iterdir()) if path.suffix in (".txt", ".bin")]
        return [*model, *(place.images / image.name for image in self._chosen(place))]

    def _scene(self, place: Place) -> TrueScene:
        paths = [place.images / image.name for image in self._chosen(place)]
        images, transforms = read_images(paths, model=self.config)
        chosen, cameras = zip(*self._upright(place), strict=True)
        pinholes = _intrinsics(cameras, transforms)
        depth, valid = self._depth(place, chosen, pinholes, transforms)
        # Around the first view, before anything is rounded to fp32: far from the origin centimetres were lost.
        origin = camera_center(chosen[0].extrinsic)
        extrinsic = torch.stack([_around(origin, image.extrinsic) for image in chosen]).float()
        # The files count from the corner of the first pixel, we from its centre.
        intrinsic = pinholes.clone()
        intrinsic[:, :2, 2] -= 0.5
        scene = TrueScene(place.folder.name, images, extrinsic, intrinsic, depth, valid)
        return replace(scene, scan=self._scan(place, scene, origin))

    def _upright(self, place: Place) -> list[tuple[PosedImage, Camera]]:
        """The chosen images and their cameras as images are read: with the files' EXIF orientations applied."""
        found = []
        for image in self._chosen(place):
            path, camera = place.images / image.name, self._models[place.folder].cameras[image.camera]
            orientation, size = read_orientation(path)
            turned, upright = turned_upright(image, camera, orientation)
            if not _same_shape(size, upright.size):
                raise ModelError(
                    f"{path} has {size[1]} x {size[0]} pixels, and its camera {upright.size[1]} x {upright.size[0]}, "
                    "which is another shape: the two do not belong together"
                )
            found.append((turned, upright))
        return found

    def _depth(
        self, place: Place, chosen: Sequence[PosedImage], pinholes: Tensor, transforms: Sequence[ImageTransform]
    ) -> tuple[Tensor | None, Tensor | None]:
        return None, None

    def _scan(self, place: Place, scene: TrueScene, origin: Tensor) -> Tensor | None:
        """origin: of the scene's world in the files'."""
        return None


class Co3dScenes(PosedScenes):
    """Sequences of CO3Dv2: a folder of categories, or one category; their cameras alone."""

    kind = "co3d"

    def _read(self, folder: Path, scenes: int | None) -> tuple[list[Place], dict[Path, Model]]:
        places: list[Place] = []
        models: dict[Path, Model] = {}
        for category in categories(folder):
            for sequence, model in sorted(read_sequences(category).items()):
                if scenes is not None and len(places) == scenes:
                    return places, models
                places.append(Place(category / sequence, category, category.parent))
                models[category / sequence] = model
        return places, models

    def _files(self, place: Place) -> list[Path]:
        images = [place.images / image.name for image in self._chosen(place)]
        return [place.model / ANNOTATIONS, *images]


def _place(folder: Path) -> Place:
    """Raises FileNotFoundError for a folder without a model."""
    model = find_model(folder)
    if others := [path for path in sorted(model.parent.glob("[1-9]*")) if model.name == "0" and is_model(path)]:
        warnings.warn(
            f"{model.parent} holds several models: {model.name} is taken, not {first_few([p.name for p in others])}",
            stacklevel=2,
        )
    return Place(folder, model, folder / "images" if (folder / "images").is_dir() else folder)


def _around(origin: Tensor, extrinsic: Tensor) -> Tensor:
    """Camera from world [3, 4] -> camera from a world of the same axes that begins at `origin` [3]."""
    return torch.cat([extrinsic[:, :3], extrinsic @ torch.cat([origin, origin.new_ones(1)])[:, None]], dim=1)


def _same_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether one (H, W) is the other, scaled and rounded."""
    return abs(size[1] * other[0] - size[0] * other[1]) <= other[0] + other[1]


def _intrinsics(cameras: Sequence[Camera], transforms: Sequence[ImageTransform]) -> Tensor:
    """[S, 3, 3] at the model's resolution, counted from the corner of the first pixel.

    Cameras of another size than their images' files are theirs all the same: many programs scale images alone.
    """
    found = []
    for camera, transform in zip(cameras, transforms, strict=True):
        intrinsic, (height, width) = camera.intrinsic(), transform.original_size
        intrinsic[0] *= width / camera.size[1]
        intrinsic[1] *= height / camera.size[0]
        found.append(transform.intrinsic_to_model(intrinsic))
    return torch.stack(found)
