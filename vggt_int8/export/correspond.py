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
MOST_VIEWS = 24  # images that a point is carried into


@dataclass(frozen=True)
class Observations:
    """N points and the M places where images see them; every point is seen by its own image at least."""

    points: Doubles  # [N, 3]
    colors: NDArray[np.uint8]  # [N, 3]
    image: Indices  # [M]
    pixel: Doubles  # [M, 2] (x, y) of the model's image; the first pixel is centred on (0, 0)
    point: Indices  # [M]


def observe(selection: Selection, pool: ThreadPoolExecutor) -> Observations:
    """All points of a selection, in its order. The scene has cameras; without depth no other image sees a point."""
    scene = selection.scene
    cameras = _Cameras(scene)

    def look(index: int) -> Observations:
        mask = selection.mask(index)
        rows, columns = np.nonzero(mask)
        points = selection.points(index)[mask].astype(np.float64)
        own = np.stack([columns, rows], axis=-1).astype(np.float64)
        numbers = np.arange(len(points))
        if scene.depth is None or not len(points):
            points_mean, views, pixels, seen = points, np.empty(0, np.int64), np.empty((0, 2)), numbers[:0]
        else:
            points_mean, views, pixels, seen = _carry(scene, cameras, index, points)
        return Observations(
            points=points_mean,
            colors=scene.colors[index].numpy()[mask],
            image=np.concatenate([np.full(len(points), index), views]),
            pixel=np.concatenate([own, pixels]),
            point=np.concatenate([numbers, seen]),
        )

    pieces = list(in_order(pool, look, range(len(scene))))
    starts = np.cumsum([0, *(len(piece.points) for piece in pieces)])
    return Observations(
        points=np.concatenate([piece.points for piece in pieces]),
        colors=np.concatenate([piece.colors for piece in pieces]),
        image=np.concatenate([piece.image for piece in pieces]),
        pixel=np.concatenate([piece.pixel for piece in pieces]),
        point=np.concatenate([piece.point + start for piece, start in zip(pieces, starts[:-1], strict=True)]),
    )


def project(points: Doubles, rotation: Doubles, translation: Doubles, intrinsic: Doubles) -> tuple[Doubles, Doubles]:
    """Points [..., 3] -> pixels [..., 2] and depth [...]; the camera's arrays broadcast over the points."""
    local = np.einsum("...ij,...j->...i", rotation, points) + translation
    depth = local[..., 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        plane = local[..., :2] / depth[..., None]
    focal = np.stack([intrinsic[..., 0, 0], intrinsic[..., 1, 1]], axis=-1)
    return plane * focal + intrinsic[..., :2, 2], depth


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


def _carry(scene: Scene, cameras: _Cameras, index: int, points: Doubles) -> tuple[Doubles, Indices, Doubles, Indices]:
    """Points [n, 3] of an image -> their means, and of each other view: image, pixel and number of the point."""
    _, depth = project(points, cameras.rotation[index], cameras.translation[index], cameras.intrinsic[index])
    total, number = points.copy(), np.ones(len(points))
    views, pixels, seen = [], [], []
    for other in cameras.nearest(index, max(float(np.median(depth)), 1e-12)):
        rotation, translation = cameras.rotation[other], cameras.translation[other]
        intrinsic = cameras.intrinsic[other]
        place, expected = project(points, rotation, translation, intrinsic)
        here, found = _depth_at(scene, int(other), place, expected)
        local = np.concatenate([(place[here] - intrinsic[:2, 2]) / np.diag(intrinsic)[:2], np.ones((len(here), 1))], 1)
        total[here] += (local * found[:, None] - translation) @ rotation
        number[here] += 1
        views.append(np.full(len(here), other))
        pixels.append(place[here])
        seen.append(here)
    if not views:
        return points, np.empty(0, np.int64), np.empty((0, 2)), np.empty(0, np.int64)
    return total / number[:, None], np.concatenate(views), np.concatenate(pixels), np.concatenate(seen)


def _depth_at(scene: Scene, index: int, place: Doubles, expected: Doubles) -> tuple[Indices, Doubles]:
    """Which of n places [n, 2] an image shows at about the expected depth [n], and the depth that it has there."""
    assert scene.depth is not None
    height, width = scene.size
    with np.errstate(invalid="ignore"):
        inside = (expected > 0) & (place >= 0).all(-1) & (place[:, 0] < width - 1) & (place[:, 1] < height - 1)
    here = np.flatnonzero(inside)
    corner = np.floor(place[here]).astype(np.int64)
    part = place[here] - corner
    depth, content = scene.depth[index].numpy(), scene.content(index).numpy()
    corners = [(corner[:, 1] + down, corner[:, 0] + right) for down in (0, 1) for right in (0, 1)]
    four = np.stack([depth[at] for at in corners]).astype(np.float64)
    shown = np.logical_and.reduce([content[at] for at in corners])
    (x, y) = part.T
    found = four[0] * (1 - y) * (1 - x) + four[1] * (1 - y) * x + four[2] * y * (1 - x) + four[3] * y * x
    with np.errstate(invalid="ignore"):
        flat = four.max(0) - four.min(0) <= 2 * AGREEMENT * found
        agrees = shown & flat & (np.abs(found - expected[here]) <= AGREEMENT * expected[here])
    return here[agrees], found[agrees]
