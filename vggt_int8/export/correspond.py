"""Finds the images that see a point: points are projected from their own image into others, where depth must agree.

A point of image i is projected into the nearest images. If it lies inside such an image, and the depth there (between
four pixels that agree) is that of the point to within `AGREEMENT`, both images see the same surface: its position
becomes the mean over all these images, and their deviations from that mean are reprojection errors, which reflect
disagreement of depths and poses.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vggt_int8.export.frames import content_box, content_of, in_order
from vggt_int8.export.selection import Selection
from vggt_int8.geometry import camera_center
from vggt_int8.scene.scene import Scene

Doubles = NDArray[np.float64]
Indices = NDArray[np.int64]
AGREEMENT = 0.02  # of depth, relative
MOST_VIEWS = 12  # images that a point is carried into
_TOGETHER = 8192  # points that are carried at a time


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

    def look(frames: Sequence[int]) -> Observations:
        found = [selection.pixels(index) for index in frames]
        pieces = [selection.points(index, pixels) for index, pixels in zip(frames, found, strict=True)]
        colors = [selection.colors(index, pixels) for index, pixels in zip(frames, found, strict=True)]
        counts, pixels = [len(pixels) for pixels in found], np.concatenate(found)
        points = np.concatenate(pieces).astype(np.float64)
        image, point = np.repeat(np.array(frames), counts), np.arange(len(points))
        pixel = np.stack([pixels % scene.size[1], pixels // scene.size[1]], axis=-1).astype(np.float64)
        if scene.depth is not None and len(points):
            points, others = _carry(scene, cameras, frames, counts, points)
            image, pixel, point = (np.concatenate(both) for both in zip((image, pixel, point), others, strict=True))
            order = np.argsort(point.astype(np.int32), kind="stable")
            image, pixel, point = image[order], pixel.take(order, axis=0), point[order]
        pixel = (pixel + 0.5 - offset.take(image, axis=0)) / scale.take(image, axis=0)
        camera = (of.take(image, axis=0) for of in (cameras.rotation, cameras.translation, intrinsics))
        place, _ = project(points.take(point, axis=0), *camera)
        error = np.hypot(place[:, 0] - pixel[:, 0], place[:, 1] - pixel[:, 1])
        return Observations(points, np.concatenate(colors), image, pixel, point, error)

    pieces = list(in_order(pool, look, _groups(selection.per_frame.tolist())))
    starts = np.cumsum([0, *(len(piece.points) for piece in pieces)])
    return Observations(
        points=np.concatenate([piece.points for piece in pieces]),
        colors=np.concatenate([piece.colors for piece in pieces]),
        image=np.concatenate([piece.image for piece in pieces]),
        pixel=np.concatenate([piece.pixel for piece in pieces]),
        point=np.concatenate([piece.point + start for piece, start in zip(pieces, starts[:-1], strict=True)]),
        error=np.concatenate([piece.error for piece in pieces]),
    )


def _groups(counts: Sequence[int]) -> list[list[int]]:
    """Neighbouring images with about `_TOGETHER` points, of one image where that has more."""
    groups: list[list[int]] = [[]]
    points = 0
    for index, count in enumerate(counts):
        if groups[-1] and points + count > _TOGETHER:
            groups.append([])
            points = 0
        groups[-1].append(index)
        points += count
    return groups


def project(points: Doubles, rotation: Doubles, translation: Doubles, intrinsic: Doubles) -> tuple[Doubles, Doubles]:
    """Points [N, 3] -> pixels [..., N, 2] and depth [..., N].

    The camera is one ([3, 3], [3], [3, 3]), one for each point ([N, ...]), or V for all or each ([V, 1 or N, ...]).
    """
    x, y, z = points[:, 0], points[:, 1], points[:, 2]

    def row(axis: int) -> Doubles:
        turned = rotation[..., axis, 0] * x + rotation[..., axis, 1] * y + rotation[..., axis, 2] * z
        return turned + translation[..., axis]

    depth = row(2)
    pixels = np.empty((*depth.shape, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        for axis in (0, 1):
            pixels[..., axis] = row(axis) / depth * intrinsic[..., axis, axis] + intrinsic[..., axis, 2]
    return pixels, depth


class _Cameras:
    def __init__(self, scene: Scene) -> None:
        assert scene.extrinsic is not None
        assert scene.intrinsic is not None
        extrinsic = scene.extrinsic.numpy().astype(np.float64)
        self.rotation, self.translation = extrinsic[:, :, :3], extrinsic[:, :, 3]
        self.intrinsic = scene.intrinsic.numpy().astype(np.float64)
        self.parts = self.rotation, self.translation, self.intrinsic
        self.centers = camera_center(scene.extrinsic.double()).numpy()
        self.forward = self.rotation[:, 2]
        # Of each image: left, top, right, bottom of what is neither padding nor cut off.
        self.boxes = np.array([content_box(transform) for transform in scene.transforms], dtype=np.float64)

    def nearest(self, index: int, distance: float) -> tuple[Indices, NDArray[np.bool_]]:
        """[V] the images whose cameras stand nearest and look most alike, and whether these can be compared at all.

        `distance` of what an image shows is a unit.
        """
        apart = np.linalg.norm(self.centers - self.centers[index], axis=-1) / distance
        angle = np.arccos((self.forward @ self.forward[index]).clip(-1, 1))
        cost = np.where(np.isfinite(apart + angle), apart + angle, np.inf)
        cost[index] = np.inf
        order = np.argsort(cost, kind="stable")[:MOST_VIEWS]
        return order, np.isfinite(cost[order])


def _carry(
    scene: Scene, cameras: _Cameras, frames: Sequence[int], counts: Sequence[int], points: Doubles
) -> tuple[Doubles, tuple[Indices, Doubles, Indices]]:
    """Points [n, 3] of images -> their means, and what others see of them: images [m], places [m, 2], points [m].

    counts: how many of the points are each image's; there are some. All images at once, and all that they are carried
    into: short steps in many threads are so many waits for each other. Rows are gathered by `take`, which is several
    times as fast as an index.
    """
    of_point = np.repeat(np.arange(len(frames)), counts) if len(frames) > 1 else np.zeros(1, np.int64)  # or of all
    own = np.array(frames).take(of_point)
    _, depth = project(points, *(part.take(own, axis=0) for part in cameras.parts))
    reaches = [np.median(part) if len(part) else 1.0 for part in np.split(depth, np.cumsum(counts)[:-1])]
    nearest = [cameras.nearest(i, max(float(reach), 1e-12)) for i, reach in zip(frames, reaches, strict=True)]
    others, known = (np.stack(part, axis=-1).take(of_point, axis=1) for part in zip(*nearest, strict=True))
    place, expected = project(points, *(part.take(others, axis=0) for part in cameras.parts))  # [V, n, 2], [V, n]
    view, point = (known & _inside(cameras.boxes.take(others, axis=0), place, expected)).nonzero()
    others = np.broadcast_to(others, expected.shape)[view, point]
    place, expected = place[view, point], expected[view, point]
    found, agrees = _depth_at(scene, others, place, expected)
    camera, point, place, found = others[agrees], point[agrees], place[agrees], found[agrees]
    local = np.empty((len(point), 3))
    for axis in (0, 1):
        ray = (place[:, axis] - cameras.intrinsic[camera, axis, 2]) / cameras.intrinsic[camera, axis, axis]
        local[:, axis] = ray * found
    local[:, 2] = found
    local -= cameras.translation.take(camera, axis=0)
    total, number = points.copy(), 1 + np.bincount(point, minlength=len(points))
    turn = cameras.rotation.take(camera, axis=0)
    for axis in range(3):
        seen = local[:, 0] * turn[:, 0, axis] + local[:, 1] * turn[:, 1, axis] + local[:, 2] * turn[:, 2, axis]
        total[:, axis] += np.bincount(point, weights=seen, minlength=len(points))
    return total / number[:, None], (camera, place, point)


def _inside(boxes: Doubles, place: Doubles, depth: Doubles) -> NDArray[np.bool_]:
    """[V, n]: places that lie between four pixels of what an image shows. boxes: [V, 1 or n, 4]."""
    left, top, right, bottom = (boxes[..., side] for side in range(4))
    x, y = place[..., 0], place[..., 1]
    with np.errstate(invalid="ignore"):
        return (depth > 0) & (x >= left) & (y >= top) & (x < right - 1) & (y < bottom - 1)


def _depth_at(scene: Scene, image: Indices, place: Doubles, expected: Doubles) -> tuple[Doubles, NDArray[np.bool_]]:
    """The depth [m] that images have at places [m, 2], and whether it is about the expected one [m]."""
    assert scene.depth is not None
    width, area = scene.size[1], scene.size[0] * scene.size[1]
    corner = np.floor(place).astype(np.int64)
    x, y = place[:, 0] - corner[:, 0], place[:, 1] - corner[:, 1]
    first = corner[:, 1] * width + corner[:, 0]
    corners = np.stack([first, first + 1, first + width, first + width + 1])
    four = scene.depth.numpy().reshape(-1)[corners + image * area].astype(np.float64)
    found = (four[0] * (1 - x) + four[1] * x) * (1 - y) + (four[2] * (1 - x) + four[3] * x) * y
    with np.errstate(invalid="ignore"):
        flat = four.max(0) - four.min(0) <= 2 * AGREEMENT * found
        agrees = flat & (np.abs(found - expected) <= AGREEMENT * expected)
    for number in np.flatnonzero(np.bincount(image)).tolist():
        if scene.transforms[number].opaque is None:
            continue
        here = np.flatnonzero(image == number)
        agrees[here] &= content_of(scene.transforms[number]).reshape(-1)[corners[:, here]].all(0)
    return found, agrees
