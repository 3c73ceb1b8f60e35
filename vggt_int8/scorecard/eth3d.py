"""ETH3D's scenes to score on: undistorted photographs, with depth and laser scans if present.

For each scene, lists of 10 and 25 images are fixed (`data/eth3d_views.toml`); other numbers are evenly spaced.

Depth belongs to the distorted cameras. Each known value is moved along its ray to the undistorted image, and values
that fall into one pixel there are combined by their median. Values under a mask that says that the scan does not fit
the image are dropped: ETH3D's own depth has none there, but other sources may. Of the scans, only the part counts that
some of the views see: within 2 % (or 5 cm) of the depth known at the pixel.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vggt_int8.data.colmap import Model, PosedImage, read_model
from vggt_int8.data.eth3d import listed_views
from vggt_int8.data.lens import pixels_to_rays
from vggt_int8.data.scans import read_scans
from vggt_int8.geometry import compose_extrinsics, invert_extrinsic, project_points
from vggt_int8.images import ImageTransform
from vggt_int8.listing import first_few
from vggt_int8.scorecard.captured import Place, PosedScenes
from vggt_int8.scorecard.data import TrueScene

Doubles = NDArray[np.float64]
VOXEL = 0.01  # metres, of scans
DISTORTED, DEPTH, MASKS = "dslr_calibration_jpg", "ground_truth_depth/dslr_images", "masks_for_images/dslr_images"
SCANS = "dslr_scan_eval/scan_alignment.mlp"
SCAN_DOES_NOT_FIT = 2  # of masks, as ETH3D's own programs read them; 1: colours alone differ
SEEN_RELATIVE, SEEN_METRES = 0.02, 0.05


class Eth3dScenes(PosedScenes):
    """What `vggt-int8 data eth3d` fetched: undistorted images, and depth and scans where they are there."""

    kind = "eth3d"

    def _chosen(self, place: Place) -> list[PosedImage]:
        """Those of the list for so many views, where there is one of the scene."""
        names = listed_views(place.folder.name, self.views)
        if names is None:
            return super()._chosen(place)
        there = {Path(image.name).name: image for image in self._models[place.folder].images}
        if missing := [name for name in names if name not in there]:
            raise FileNotFoundError(
                f"{place.model} has no {first_few(missing)}, which --views {self.views} takes of ETH3D's "
                f"{place.folder.name}: fetch the scene anew, or ask for another number of views"
            )
        return [there[name] for name in names]

    def _files(self, place: Place) -> list[Path]:
        files = super()._files(place)
        names = [Path(image.name).name for image in self._chosen(place)]
        files += [path for name in names if (path := place.folder / DEPTH / name).is_file()]
        files += [path for name in names if (path := _mask_of(place, name)).is_file()]
        distorted = place.folder / DISTORTED
        files += [path for name in ("cameras.txt", "images.txt") if (path := distorted / name).is_file()]
        project = place.folder / SCANS
        return [*files, *(sorted(project.parent.iterdir()) if project.is_file() else ())]

    def _depth(
        self, place: Place, chosen: Sequence[PosedImage], pinholes: Tensor, transforms: Sequence[ImageTransform]
    ) -> tuple[Tensor | None, Tensor | None]:
        truth = place.folder / DEPTH
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
            rays, z = _known_depth(truth / name, _mask_of(place, name), distorted, by_name[name])
            points = np.concatenate([rays, np.ones((len(z), 1))], axis=1) * z[:, None]
            maps.append(_splat(points, by_name[name].extrinsic, image.extrinsic, pinhole, transform.model_size))
        depth = torch.from_numpy(np.stack(maps))
        valid = (depth > 0) & torch.stack([transform.content_mask() for transform in transforms])
        return depth, valid

    def _scan(self, place: Place, scene: TrueScene, origin: Tensor) -> Tensor | None:
        if scene.depth is None or scene.valid is None or not (place.folder / SCANS).is_file():
            return None
        assert scene.extrinsic is not None
        assert scene.intrinsic is not None
        points = (torch.from_numpy(read_scans(place.folder / SCANS, VOXEL)) - origin).float()
        seen = torch.zeros(len(points), dtype=torch.bool)
        height, width = scene.depth.shape[-2:]
        for depth, valid, *camera in zip(scene.depth, scene.valid, scene.extrinsic, scene.intrinsic, strict=True):
            pixels, z = project_points(points, *camera)
            column, row = pixels.round().nan_to_num(-1, -1, -1).clamp(-1, 1e6).long().unbind(-1)
            inside = (z > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
            at = row[inside], column[inside]
            known = valid[at] & ((z[inside] - depth[at]).abs() < _near(z[inside]))
            seen[inside.nonzero().squeeze(-1)[known]] = True
        return points[seen]


def _near(z: Tensor) -> Tensor:
    return (SEEN_RELATIVE * z).clamp(min=SEEN_METRES)


def _mask_of(place: Place, name: str) -> Path:
    return place.folder / MASKS / Path(name).with_suffix(".png").name


def _known_depth(path: Path, mask: Path, model: Model, image: PosedImage) -> tuple[Doubles, Doubles]:
    """Rays (X / Z, Y / Z) [N, 2] and depths [N] of the pixels of a distorted camera whose depth is known.

    mask: need not be there.
    """
    camera = model.cameras[image.camera]
    height, width = camera.size
    if path.stat().st_size != 4 * height * width:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes, not the {width} x {height} floats of its camera")
    values = np.fromfile(path, dtype="<f4")
    known = np.flatnonzero(np.isfinite(values) & (values > 0) & _fits_the_scan(mask, (height, width)))
    pixels = np.stack([known % width, known // width], axis=-1).astype(np.float64) + 0.5
    rays = pixels_to_rays(camera, pixels)
    found = np.isfinite(rays).all(axis=1)
    return rays[found], values[known[found]].astype(np.float64)


def _fits_the_scan(mask: Path, size: tuple[int, int]) -> NDArray[np.bool_]:
    """[H * W]: False where the mask of an image says that the scan is wrong there. Raises ValueError, naming the file,
    for one that is damaged, has another size, or values that no such mask has."""
    if not mask.is_file():
        return np.ones(size[0] * size[1], dtype=np.bool_)
    try:
        with Image.open(mask, formats=["PNG"]) as opened:
            (width, height), mode = opened.size, opened.mode
            values = np.asarray(opened)
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises on damage
        raise ValueError(f"{mask} is damaged, remove it and fetch the masks anew: {error}") from error
    if (height, width) != size or mode not in ("L", "P"):
        raise ValueError(
            f"{mask} has {width} x {height} pixels of mode {mode}, not the {size[1]} x {size[0]} bytes of its camera"
        )
    if values.max() > SCAN_DOES_NOT_FIT:
        raise ValueError(f"{mask} has the value {values.max()}: masks of ETH3D have 0, 1 and 2")
    return (values != SCAN_DOES_NOT_FIT).ravel()


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
