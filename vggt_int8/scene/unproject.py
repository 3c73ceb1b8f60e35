"""`geometry.unproject_depth` for one frame in NumPy, whose functions release the interpreter lock."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def unproject(depth: Array, extrinsic: NDArray[Any], intrinsic: NDArray[Any]) -> Array:
    """Depth [H, W] along the z axis -> world points [H, W, 3]; the first pixel is centered on (0, 0).

    `geometry.unproject_depth` for one frame, in arrays: the ray of a pixel is linear in its column and row.
    """
    across, down, straight, center = _rays(extrinsic, intrinsic)
    height, width = depth.shape
    columns = (np.arange(width)[:, None] * across + straight).astype(np.float32)  # [W, 3]
    rows = (np.arange(height)[:, None] * down).astype(np.float32)  # [H, 3]
    points = np.empty((height, width, 3), np.float32)
    for axis in range(3):  # whole planes: loops over the three coordinates of a pixel are too short to be fast
        plane = columns[:, axis] + rows[:, axis, None]
        plane *= depth
        np.add(plane, center[axis], out=points[..., axis])
    return points


def unproject_pixels(
    depth: Array, pixels: NDArray[Any], width: int, extrinsic: NDArray[Any], intrinsic: NDArray[Any]
) -> Array:
    """The same for some pixels: depth [N] and pixels [N] (row * width + column) -> world points [N, 3]."""
    across, down, straight, center = _rays(extrinsic, intrinsic)
    row, column = np.divmod(pixels, width)
    points = np.empty((len(pixels), 3), np.float32)
    for axis in range(3):
        ray = (column * across[axis] + straight[axis]).astype(np.float32) + (row * down[axis]).astype(np.float32)
        points[:, axis] = ray * depth + center[axis]
    return points


def _rays(extrinsic: NDArray[Any], intrinsic: NDArray[Any]) -> tuple[NDArray[np.float64], ...]:
    """The change of a pixel's ray per column and per row, the ray of the first pixel, and the camera's center, fp32."""
    rotation, translation = extrinsic[:, :3].astype(np.float64), extrinsic[:, 3].astype(np.float64)
    focal, middle = intrinsic.diagonal()[:2].astype(np.float64), intrinsic[:2, 2].astype(np.float64)
    across, down = rotation[0] / focal[0], rotation[1] / focal[1]  # rows of R are columns of its inverse
    straight = rotation[2] - across * middle[0] - down * middle[1]
    return across, down, straight, (-rotation.T @ translation).astype(np.float32)
