"""Which images see a point: points are carried from their own image into others, where depth must agree.

A point of image i is projected into the images that stand nearest. Where it lies inside such an image, and the depth
there (between four pixels that agree) is that of the point to within `AGREEMENT`, both images see the same surface:
its position becomes the mean of what all of them say, and what each of them says differs from that mean by a
reprojection error, in which disagreement of depths and poses shows.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vggt_int8.export.frames import in_order
from vggt_int8.export.points import Selection
from vggt_int8.scene.scene import Scene

Doubles = NDArray[np.float64]
Indices = NDArray[np.int64]
AGREEMENT = 0.02  # of depth, relative
MOST_VIEWS = 12  # images that a point is carried into


@dataclass(frozen=True)
class Observations:
    """N points and the M places where images see them, in the order of points; its own image sees every point."""

    points: Doubles  # [N, 3]
    colors: NDArray[np.uint8]  # [N, 3]
    image: Indices  # [M]
    pixel: Doubles  # [M, 2] (x, y) of the original image; the first pixel is centred on (0.5, 0.5)
    point: Indices  # [M]
    error: Doubles  # [M] distance of the point's projection from that pixel


def observe(selection: Selection, intrinsics: Doubles, pool: ThreadPoolExecutor) -> Observations:
    """All points of a selection, in its order. The scene has cameras; without depth no other image sees a point.

    intrinsics: [S, 3, 3] for the original images' pixels.
    """
    scene = selection.scene
    cameras = _Cameras(scene)
    offset = np.array([transform.offset for transform in scene.transforms])
    scale = np.array([transform.scale for transform in scene.transforms])

    def look(index: int) -> Observations:
        pixels = selection.pixels(index)
        points, count = selection.points(index, pixels).astype(np.float64), len(pixels)
        own = np.stack([pixels % scene.size[1], pixels // scene.size[1]], axis=-1).astype(np.float64)
        parts = [(np.full(count, index), own, np.arange(count))]
        if scene.depth is not None and count:
            points, others = _carry(scene, cameras, index, points)
            parts += others
        image, pixel, point = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        order = np.argsort(point, kind="stable")
        image, pixel, point = image[order], pixel[order], point[order]
        pixel = (pixel + 0.5 - offset[image]) / scale[image]
        place, _ = project(points[point], cameras.rotation[image], cameras.translation[image], intrinsics[image])
        colors = selection.colors(index, pixels)
        return Observations(points, colors, image, pixel, point, np.linalg.norm(place - pixel, axis=-1))

    pieces = list(in_order(pool, look, range(len(scene))))
    starts = np.cumsum([0, *(len(piece.points) for piece in pieces)])
    return Observations(
        points=np.concatenate([piece.points for piece in pieces]),
        colors=np.concatenate([piece.colors for piece in pieces]),
        image=np.concatenate([piece.image for piece in pieces]),
        pixel=np.concatenate([piece.pixel for piece in pieces]),
        point=np.concatenate([piece.point + start for piece, start in zip(pieces, starts[:-1], strict=True)]),
        error=np.concatenate([piece.error for piece in pieces]),
    )


def project(points: Doubles, rotation: Doubles, translation: Doubles, intrinsic: Doubles) -> tuple[Doubles, Doubles]:
    """Points [N, 3] -> pixels [N, 2] and depth [N]; the camera is one, or one for each point."""
    x, y, z = points.T
    r, t, k = np.moveaxis(rotation, (-2, -1), (0, 1)), translation.T, np.moveaxis(intrinsic, (-2, -1), (0, 1))
    depth = r[2, 0] * x + r[2, 1] * y + r[2, 2] * z + t[2]
    with np.errstate(divide="ignore", invalid="ignore"):
        across = (r[0, 0] * x + r[0, 1] * y + r[0, 2] * z + t[0]) / depth
        down = (r[1, 0] * x + r[1, 1] * y + r[1, 2] * z + t[1]) / depth
    return np.stack([across * k[0, 0] + k[0, 2], down * k[1, 1] + k[1, 2]], axis=-1), depth


class _Cameras:
    def __init__(self, scene: Scene) -> None:
        assert scene.extrinsic is not None
        assert scene.intrinsic is not None
        extrinsic = scene.extrinsic.numpy().astype(np.float64)
        self.rotation, self.translation = extrinsic[:, :, :3], extrinsic[:, :, 3]
        self.intrinsic = scene.intrinsic.numpy().astype(np.float64)
        self.centers = -np.einsum("sji,sj->si", self.rotation, self.translation)
        self.forward = self.rotation[:, 2]

    def nearest(self, index: int, distance: float) -> Indices:
        """The images whose cameras stand nearest and look most alike; `distance` of what an image shows is a unit."""
        apart = np.linalg.norm(self.centers - self.centers[index], axis=-1) / distance
        angle = np.arccos((self.forward @ self.forward[index]).clip(-1, 1))
        cost = np.where(np.isfinite(apart + angle), apart + angle, np.inf)
        cost[index] = np.inf
        order = np.argsort(cost, kind="stable")[:MOST_VIEWS]
        return order[np.isfinite(cost[order])]


def _carry(
    scene: Scene, cameras: _Cameras, index: int, points: Doubles
) -> tuple[Doubles, list[tuple[Indices, Doubles, Indices]]]:
    """Points [n, 3] of an image -> their means, and of each other view: its number, places [m, 2], points [m]."""
    _, depth = project(points, cameras.rotation[index], cameras.translation[index], cameras.intrinsic[index])
    total, number = points.copy(), np.ones(len(points))
    views = []
    for other in cameras.nearest(index, max(float(np.median(depth)), 1e-12)).tolist():
        rotation, translation = cameras.rotation[other], cameras.translation[other]
        intrinsic = cameras.intrinsic[other]
        place, expected = project(points, rotation, translation, intrinsic)
        here, found = _depth_at(scene, other, place, expected)
        local = np.empty((len(here), 3))
        local[:, :2] = (place[here] - intrinsic[:2, 2]) / intrinsic.diagonal()[:2]
        local[:, 2] = 1
        total[here] += (local * found[:, None] - translation) @ rotation
        number[here] += 1
        views.append((np.full(len(here), other), place[here], here))
    return total / number[:, None], views


def _depth_at(scene: Scene, index: int, place: Doubles, expected: Doubles) -> tuple[Indices, Doubles]:
    """Which of n places [n, 2] an image shows at about the expected depth [n], and the depth that it has there."""
    assert scene.depth is not None
    height, width = scene.size
    with np.errstate(invalid="ignore"):
        inside = (expected > 0) & (place >= 0).all(-1) & (place[:, 0] < width - 1) & (place[:, 1] < height - 1)
    here = np.flatnonzero(inside)
    corner = np.floor(place[here]).astype(np.int64)
    x, y = (place[here] - corner).T
    first = corner[:, 1] * width + corner[:, 0]
    corners = np.stack([first, first + 1, first + width, first + width + 1])
    four = scene.depth[index].numpy().reshape(-1)[corners].astype(np.float64)
    shown = scene.content(index).numpy().reshape(-1)[corners].all(0)
    found = (four[0] * (1 - x) + four[1] * x) * (1 - y) + (four[2] * (1 - x) + four[3] * x) * y
    with np.errstate(invalid="ignore"):
        flat = four.max(0) - four.min(0) <= 2 * AGREEMENT * found
        agrees = shown & flat & (np.abs(found - expected[here]) <= AGREEMENT * expected[here])
    return here[agrees], found[agrees]
