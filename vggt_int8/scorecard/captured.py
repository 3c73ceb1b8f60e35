"""Photographs with known cameras as scenes to score on: COLMAP folders, CO3Dv2, and ETH3D with depth and laser scans.

`PosedScenes` reads a COLMAP model of pinhole cameras and its images, resized as `run` does; cameras of different sizes
in one scene are padded to the largest. Which images of a scene is a rule, so that everybody takes the same ones: in the
order of their names, evenly spread, the first and the last among them (`evenly`).

ETH3D's depth belongs to the distorted cameras. Each known value is taken along its ray to the undistorted image, and
what falls into one pixel there is put together by the median. Of the scans that part counts which some of the views
see: within 2 % (or 5 cm) of the depth known at the pixel.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggt_int8.data.co3d import ANNOTATIONS, categories, read_sequences
from vggt_int8.data.colmap import Model, PosedImage, find_model, read_model
from vggt_int8.data.lens import pixels_to_rays
from vggt_int8.data.scans import read_scans
from vggt_int8.export.repeat import add_samples
from vggt_int8.geometry import compose_extrinsics, invert_extrinsic, project_points
from vggt_int8.images import ImageTransform, read_images
from vggt_int8.scorecard.data import TrueScene

Doubles = NDArray[np.float64]
VOXEL = 0.01  # metres, of scans
UNDISTORTED, DISTORTED, DEPTH = "dslr_calibration_undistorted", "dslr_calibration_jpg", "ground_truth_depth"
SCANS = "dslr_scan_eval/scan_alignment.mlp"
SEEN_RELATIVE, SEEN_METRES = 0.02, 0.05


def evenly(count: int, most: int | None) -> list[int]:
    """Indices of at most `most` of `count` things, evenly spread, with the first and the last; all by default."""
    if most is None or most >= count:
        return list(range(count))
    return [round(i * (count - 1) / max(1, most - 1)) for i in range(most)]


@dataclass(frozen=True)
class _Place:
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
        folder = folder.expanduser()
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
        scenes = {place.folder.name: self._digest(place) for place in self.places}
        size = [self.config.img_size, self.config.patch_size]
        return {"kind": self.kind, "views": self.views or "all", "model_size": size, "scenes": scenes}

    def _read(self, folder: Path, scenes: int | None) -> tuple[list[_Place], dict[Path, Model]]:
        """The scenes, and the model of each by its folder."""
        places = self._find(folder)[:scenes]
        return places, {place.folder: read_model(place.model) for place in places}

    def _find(self, folder: Path) -> list[_Place]:
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

    def _chosen(self, place: _Place) -> list[PosedImage]:
        images = self._models[place.folder].images
        return [images[i] for i in evenly(len(images), self.views)]

    def _check(self, place: _Place) -> None:
        for image in self._chosen(place):
            self._models[place.folder].cameras[image.camera].intrinsic()  # raises for one that bends lines
            if not (place.images / image.name).is_file():
                raise FileNotFoundError(f"{place.images / image.name} is not there, which {place.model} names")

    def _digest(self, place: _Place) -> str:
        total = hashlib.sha256()
        for path in self._files(place):
            add_samples(total, path)
        return total.hexdigest()

    def _files(self, place: _Place) -> list[Path]:
        """All that decides images and truth."""
        model = [path for path in sorted(place.model.iterdir()) if path.suffix in (".txt", ".bin")]
        return [*model, *(place.images / image.name for image in self._chosen(place))]

    def _scene(self, place: _Place) -> TrueScene:
        model, chosen = self._models[place.folder], self._chosen(place)
        paths = [place.images / image.name for image in chosen]
        images, transforms = read_images(paths, model=self.config)
        pinholes = _intrinsics(model, chosen, transforms)
        extrinsic = torch.stack([image.extrinsic for image in chosen])
        depth, valid = self._depth(place, chosen, pinholes, transforms)
        # The files count from the corner of the first pixel, we from its centre.
        intrinsic = pinholes.clone()
        intrinsic[:, :2, 2] -= 0.5
        scan = self._scan(place, extrinsic, intrinsic, depth, valid)
        return TrueScene(place.folder.name, images, extrinsic, intrinsic, depth, valid, scan)

    def _depth(
        self, place: _Place, chosen: Sequence[PosedImage], pinholes: Tensor, transforms: Sequence[ImageTransform]
    ) -> tuple[Tensor | None, Tensor | None]:
        return None, None

    def _scan(
        self, place: _Place, extrinsic: Tensor, intrinsic: Tensor, depth: Tensor | None, valid: Tensor | None
    ) -> Tensor | None:
        return None


class Eth3dScenes(PosedScenes):
    """What `vggt-int8 data eth3d` fetched: undistorted images, and depth and scans where they are there."""

    kind = "eth3d"

    def _files(self, place: _Place) -> list[Path]:
        files = super()._files(place)
        truth = place.folder / DEPTH / "dslr_images"
        files += [path for image in self._chosen(place) if (path := truth / Path(image.name).name).is_file()]
        distorted = place.folder / DISTORTED
        files += [path for name in ("cameras.txt", "images.txt") if (path := distorted / name).is_file()]
        project = place.folder / SCANS
        return [*files, *(sorted(project.parent.iterdir()) if project.is_file() else ())]

    def _depth(
        self, place: _Place, chosen: Sequence[PosedImage], pinholes: Tensor, transforms: Sequence[ImageTransform]
    ) -> tuple[Tensor | None, Tensor | None]:
        truth = place.folder / DEPTH / "dslr_images"
        if not truth.is_dir():
            return None, None
        distorted = read_model(place.folder / DISTORTED)
        by_name = {Path(image.name).name: image for image in distorted.images}
        maps = []
        for image, pinhole, transform in zip(chosen, pinholes, transforms, strict=True):
            name = Path(image.name).name
            if not (truth / name).is_file() or name not in by_name:
                maps.append(np.zeros(transform.model_size, dtype=np.float32))  # none known in this view
                continue
            rays, z = _known_depth(truth / name, distorted, by_name[name])
            points = np.concatenate([rays, np.ones((len(z), 1))], axis=1) * z[:, None]
            maps.append(_splat(points, by_name[name].extrinsic, image.extrinsic, pinhole, transform.model_size))
        depth = torch.from_numpy(np.stack(maps))
        valid = (depth > 0) & torch.stack([transform.content_mask() for transform in transforms])
        return depth, valid

    def _scan(
        self, place: _Place, extrinsic: Tensor, intrinsic: Tensor, depth: Tensor | None, valid: Tensor | None
    ) -> Tensor | None:
        if depth is None or valid is None or not (place.folder / SCANS).is_file():
            return None
        points = torch.from_numpy(read_scans(place.folder / SCANS, VOXEL)).float()
        seen = torch.zeros(len(points), dtype=torch.bool)
        height, width = depth.shape[-2:]
        for view in range(len(depth)):
            pixels, z = project_points(points, extrinsic[view], intrinsic[view])
            column, row = pixels.round().nan_to_num(-1, -1, -1).clamp(-1, 1e6).long().unbind(-1)
            inside = (z > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
            at = row[inside], column[inside]
            known = valid[view][at] & ((z[inside] - depth[view][at]).abs() < _near(z[inside]))
            seen[inside.nonzero().squeeze(-1)[known]] = True
        return points[seen]


class Co3dScenes(PosedScenes):
    """Sequences of CO3Dv2: a folder of categories, or one category; their cameras alone."""

    kind = "co3d"

    def _read(self, folder: Path, scenes: int | None) -> tuple[list[_Place], dict[Path, Model]]:
        places: list[_Place] = []
        models: dict[Path, Model] = {}
        for category in categories(folder):
            for sequence, model in sorted(read_sequences(category).items()):
                if scenes is not None and len(places) == scenes:
                    return places, models
                places.append(_Place(category / sequence, category, category.parent))
                models[category / sequence] = model
        return places, models

    def _files(self, place: _Place) -> list[Path]:
        images = [place.images / image.name for image in self._chosen(place)]
        return [place.model / ANNOTATIONS, *images]


def _near(z: Tensor) -> Tensor:
    return (SEEN_RELATIVE * z).clamp(min=SEEN_METRES)


def _place(folder: Path) -> _Place:
    """Raises FileNotFoundError for a folder without a model."""
    return _Place(folder, find_model(folder), folder / "images" if (folder / "images").is_dir() else folder)


def _intrinsics(model: Model, images: Sequence[PosedImage], transforms: Sequence[ImageTransform]) -> Tensor:
    """[S, 3, 3] at the model's resolution, counted from the corner of the first pixel.

    Cameras of another size than their images' files are theirs all the same: many programs scale images alone.
    """
    found = []
    for image, transform in zip(images, transforms, strict=True):
        camera = model.cameras[image.camera]
        intrinsic = camera.intrinsic()
        height, width = transform.original_size
        intrinsic[0] *= width / camera.size[1]
        intrinsic[1] *= height / camera.size[0]
        found.append(transform.intrinsic_to_model(intrinsic))
    return torch.stack(found)


def _known_depth(path: Path, model: Model, image: PosedImage) -> tuple[Doubles, Doubles]:
    """Rays (X / Z, Y / Z) [N, 2] and depths [N] of the pixels of a distorted camera whose depth is known."""
    camera = model.cameras[image.camera]
    height, width = camera.size
    if path.stat().st_size != 4 * height * width:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes, not the {width} x {height} floats of its camera")
    values = np.fromfile(path, dtype="<f4")
    known = np.flatnonzero(np.isfinite(values) & (values > 0))
    pixels = np.stack([known % width, known // width], axis=-1).astype(np.float64) + 0.5
    rays = pixels_to_rays(camera, pixels)
    found = np.isfinite(rays).all(axis=1)
    return rays[found], values[known[found]].astype(np.float64)


def _splat(points: Doubles, source: Tensor, target: Tensor, pinhole: Tensor, size: tuple[int, int]) -> Any:
    """Points [N, 3] of the camera `source` -> depth [H, W] of the camera `target`: medians, 0 where there are none."""
    move = compose_extrinsics(target.double(), invert_extrinsic(source.double())).numpy()
    points = points @ move[:, :3].T + move[:, 3]
    points = points[points[:, 2] > 0]
    pixels = (points @ pinhole.double().numpy().T)[:, :2] / points[:, 2:]
    column, row = np.floor(pixels).astype(np.int64).T
    inside = (column >= 0) & (column < size[1]) & (row >= 0) & (row < size[0])
    at, z = row[inside] * size[1] + column[inside], points[inside, 2]
    order = np.lexsort((z, at))
    at, z = at[order], z[order]
    cells, first, counts = np.unique(at, return_index=True, return_counts=True)
    middle = (z[first + (counts - 1) // 2] + z[first + counts // 2]) / 2
    depth = np.zeros(size[0] * size[1], dtype=np.float32)
    depth[cells] = middle
    return depth.reshape(size)
