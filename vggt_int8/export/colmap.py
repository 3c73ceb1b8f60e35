"""`sparse/0`: the scene as a COLMAP model at the original images' resolution, for COLMAP, 3DGS and gsplat.

Half a pixel: VGGT's depth belongs to array indices, so its first pixel is centered on (0, 0); COLMAP centers it on
(0.5, 0.5). The network's principal point is at the image center (W / 2, H / 2) of the former convention, so in the
latter it is half a network pixel right of and below the center, and points project to where they are seen.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vggt_int8.export.colmap_files import ColmapModel, write_model
from vggt_int8.export.correspond import observe
from vggt_int8.export.naming import image_names
from vggt_int8.export.selection import Selection
from vggt_int8.geometry import rotation_to_quaternion
from vggt_int8.images.fit import intrinsics_to_original
from vggt_int8.listing import first_few
from vggt_int8.scene.scene import Scene

POINTS = 100_000  # unless it is said otherwise: what 3DGS starts from


@dataclass(frozen=True)
class Written:
    """A model, and a summary of its points."""

    model: ColmapModel
    summary: dict[str, Any]


def corner_intrinsics(scene: Scene) -> Tensor:
    """fp64 [S, 3, 3] of all images in their originals' pixels, the first of which is centred on (0.5, 0.5).

    Raises ValueError for a camera without a finite focal length.
    """
    assert scene.intrinsic is not None
    intrinsics = scene.intrinsic.double()
    finite = intrinsics.isfinite().flatten(1).all(dim=1)
    if not finite.all():
        raise ValueError(
            f"{scene.names[finite.tolist().index(False)]} has no finite focal length (its field of view is 0), so it "
            "has no camera for other programs: leave the image out"
        )
    intrinsics = intrinsics.clone()
    intrinsics[:, :2, 2] += 0.5
    return intrinsics_to_original(scene.transforms, intrinsics)


def colmap_model(scene: Scene, selection: Selection, pool: ThreadPoolExecutor, *, shared: bool = False) -> Written:
    """The model with all points of `selection`.

    shared: one camera for all images, with the medians of their focal lengths and principal points.

    Raises ValueError if the images then differ in size, or if a camera is not finite.
    """
    assert scene.extrinsic is not None
    intrinsics = corner_intrinsics(scene)
    sizes = [transform.original_size[::-1] for transform in scene.transforms]
    if shared:
        intrinsics = _shared(intrinsics, sizes)
    seen = observe(selection, intrinsics.numpy(), pool)
    extrinsic = scene.extrinsic.double()
    quaternions = rotation_to_quaternion(extrinsic[:, :, :3])[:, [3, 0, 1, 2]]
    number = np.bincount(seen.point, minlength=len(seen.points))
    focal, center = intrinsics.diagonal(dim1=-2, dim2=-1)[:, :2], intrinsics[:, :2, 2]
    parameters = torch.cat([focal, center], dim=-1).numpy()
    model = ColmapModel(
        sizes=sizes[:1] if shared else sizes,
        parameters=parameters[:1] if shared else parameters,
        camera_of=[0] * len(scene) if shared else list(range(len(scene))),
        names=image_names(scene),
        poses=torch.cat([quaternions, extrinsic[:, :, 3]], dim=-1).numpy(),
        points=seen.points,
        colors=seen.colors,
        errors=np.bincount(seen.point, weights=seen.error, minlength=len(seen.points)) / np.maximum(number, 1),
        seen_by=seen.image,
        seen_at=seen.pixel,
        seen_point=seen.point,
    )
    several = number[seen.point] > 1
    summary = {
        "images": len(scene),
        "cameras": len(model.sizes),
        "points": len(seen.points),
        "observations": len(seen.point),
        "points_in_several_images": int((number > 1).sum()),
        "mean_reprojection_error": float(seen.error[several].mean()) if several.any() else None,
    }
    return Written(model, summary)


def write_colmap(folder: Path, written: Written, pool: ThreadPoolExecutor) -> dict[str, Any]:
    """Write `sparse/0` below `folder` -> the summary for the report. Raises ValueError for a model without points."""
    if not len(written.model.points):
        raise ValueError(
            "no points are left for a COLMAP model, which others cannot read: lower the confidence or remove filters"
        )
    place = folder / "sparse" / "0"
    place.mkdir(parents=True)
    write_model(place, written.model, pool)
    return written.summary


def off_center(model: ColmapModel) -> float:
    """The largest distance of a principal point from its image's center, relative to the image's width or height."""
    sizes = np.array(model.sizes, dtype=np.float64)
    return float((np.abs(model.parameters[:, 2:] - sizes / 2) / sizes).max())


def _shared(intrinsics: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
    if len(set(sizes)) > 1:
        kinds = first_few([f"{width}x{height}" for width, height in sorted(set(sizes))])
        raise ValueError(f"one camera for all images needs images of one size, and these have {kinds} (width x height)")
    return intrinsics.median(dim=0).values.expand_as(intrinsics).contiguous()
