"""`geometry.unproject_depth` of one frame in NumPy, whose functions leave the interpreter's lock to other threads."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def unproject(depth: Array, extrinsic: NDArray[Any], intrinsic: NDArray[Any]) -> Array:
    """Depth [H, W] along the z axis -> world points [H, W, 3]; the first pixel is centred on (0, 0).

    `geometry.unproject_depth` for one frame, in arrays: the ray of a pixel is linear in its column and row.
    """
    rotation, translation = extrinsic[:, :3].astype(np.float64), extrinsic[:, 3].astype(np.float64)
    focal, center = intrinsic.diagonal()[:2].astype(np.float64), intrinsic[:2, 2].astype(np.float64)
    across, down = rotation[0] / focal[0], rotation[1] / focal[1]  # rows of R are columns of its inverse
    straight = rotation[2] - across * center[0] - down * center[1]
    height, width = depth.shape
    columns = np.arange(width)[:, None] * across + straight  # [W, 3]
    rows = np.arange(height)[:, None] * down  # [H, 3]
    rays = columns.astype(np.float32)[None] + rows.astype(np.float32)[:, None]
    rays *= depth[..., None]
    rays += (-rotation.T @ translation).astype(np.float32)
    return rays
