"""`transforms.json` for nerfstudio and compatible readers: OpenGL cameras, intrinsics in every frame.

Camera to world in OpenGL axes (x right, y up, z backward) is OpenCV's with the second and third axis negated; the world
is unchanged. Intrinsics outside the frames would silently replace those in the frames in nerfstudio, and
`applied_scale` would scale its points but not its cameras, so neither is written. Pixels are counted from the image's
corner, as in COLMAP.
"""

from typing import Any

import numpy as np
import torch

from vggt_int8.export.colmap import corner_intrinsics
from vggt_int8.geometry import camera_center, invert_extrinsic
from vggt_int8.scene.scene import Scene

POINTS_FILE = "sparse_points.ply"
_LEAST_APART = 1e-6  # of the distance to what is seen


def transforms_document(scene: Scene, image_paths: list[str], points_file: str | None) -> dict[str, Any]:
    """The content of transforms.json. image_paths: as they are found from its folder.

    Raises ValueError for one image, and for cameras that all stand in one place: readers divide by their distance.
    """
    assert scene.extrinsic is not None
    if len(scene) < 2:
        raise ValueError("transforms.json needs two images or more: its readers divide by the distance of cameras")
    centers = camera_center(scene.extrinsic)
    apart = float((centers - centers[0]).norm(dim=-1).max())
    depth = np.empty(0) if scene.depth is None else scene.depth[0].numpy()
    shown = depth[np.isfinite(depth)]
    reach = float(np.median(shown)) if shown.size else 1.0
    if not apart > _LEAST_APART * abs(reach):
        raise ValueError(
            f"all cameras stand in one place (at most {apart:.3g} apart, where the first image shows things "
            f"{reach:.3g} away): readers of transforms.json divide by that distance. "
            "Photographs that are turned on the spot show no depth"
        )
    document: dict[str, Any] = {"camera_model": "OPENCV"}
    if points_file is not None:
        document["ply_file_path"] = points_file
    to_world = torch.eye(4, dtype=torch.float64).repeat(len(scene), 1, 1)
    to_world[:, :3] = invert_extrinsic(scene.extrinsic.double())
    to_world[:, :3, 1:3] *= -1
    document["frames"] = [
        {
            "file_path": path,
            "w": transform.original_size[1],
            "h": transform.original_size[0],
            "fl_x": focal_x,
            "fl_y": focal_y,
            "cx": center_x,
            "cy": center_y,
            "transform_matrix": matrix,
        }
        for path, transform, ((focal_x, _, center_x), (_, focal_y, center_y), _), matrix in zip(
            image_paths, scene.transforms, corner_intrinsics(scene).tolist(), to_world.tolist(), strict=True
        )
    ]
    return document
