"""The pixels of a scene that become points: a bitmap, with their points, colors and normals on demand.

A scene of any length is thus filtered and written frame by frame; `points` creates a `Selection`, and every format
reads one.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vggt_int8.export.color import Array, Colors
from vggt_int8.export.frames import in_order, surface_normals
from vggt_int8.geometry import camera_center
from vggt_int8.scene.scene import Scene
from vggt_int8.scene.unproject import unproject, unproject_pixels

PointSource = Literal["depth", "world_points"]
SEED = 0  # of a random subset
FARTHEST = np.float32(1e30)  # a depth or coordinate beyond this would overflow on its way into the world
Bits = NDArray[np.bool_]
Pixels = NDArray[np.int64]


@dataclass(frozen=True)
class PointCloud:
    """N points with colours, and where the other pixels went: the counts sum up to all pixels."""

    points: Array  # [N, 3] world coordinates
    colors: Colors  # [N, 3]
    confidence: Array | None  # [N]
    frames: NDArray[np.int32]  # [N] the image that a point is from
    pixels: Pixels  # [N] its pixel there: row * W + column
    counts: dict[str, int]  # written, and what each filter has left out


@dataclass(frozen=True)
class Selection:
    """The pixels of a scene that are kept: a bit for each pixel, or their numbers where they are few."""

    scene: Scene
    source: PointSource
    counts: dict[str, int]
    per_frame: NDArray[np.int64]  # [S] pixels that are kept
    bits: list[NDArray[np.uint8]] = field(repr=False)  # per frame, as np.packbits packs [H, W]
    few: list[Pixels] | None = field(default=None, repr=False)  # instead of the bits

    @property
    def kept(self) -> int:
        return int(self.per_frame.sum())

    def mask(self, index: int) -> Bits:
        """bool [H * W]: the kept pixels of an image."""
        height, width = self.scene.size
        return np.unpackbits(self.bits[index], count=height * width).view(np.bool_)

    def pixels(self, index: int) -> Pixels:
        """int64 [N]: the kept pixels of an image, row * W + column, ascending."""
        return np.flatnonzero(self.mask(index)) if self.few is None else self.few[index]

    def points(self, index: int, pixels: Pixels) -> Array:
        """fp32 [N, 3]: the world points of some pixels of an image."""
        scene, width = self.scene, self.scene.size[1]
        if self.source == "world_points":
            assert scene.world_points is not None
            return scene.world_points[index].numpy().reshape(-1, 3).take(pixels, axis=0)
        assert scene.depth is not None
        assert scene.extrinsic is not None
        assert scene.intrinsic is not None
        depth, camera = scene.depth[index].numpy(), (scene.extrinsic[index].numpy(), scene.intrinsic[index].numpy())
        if 4 * len(pixels) > depth.size:
            return unproject(depth, *camera).reshape(-1, 3).take(pixels, axis=0)
        return unproject_pixels(depth.reshape(-1)[pixels], pixels, width, *camera)

    def colors(self, index: int, pixels: Pixels) -> Colors:
        """uint8 [N, 3]: their colours."""
        return self.scene.colors[index].numpy().reshape(-1, 3).take(pixels, axis=0)

    def confidence(self, index: int, pixels: Pixels) -> Array | None:
        """fp32 [N]: the confidence of these points."""
        confidence = confidence_of(self.scene, self.source, index)
        return None if confidence is None else confidence.reshape(-1)[pixels]

    def normals(self, index: int, pixels: Pixels) -> Array:
        """fp32 [N, 3]: unit normals that face the camera; the world's origin where there is none."""
        extrinsic = self.scene.extrinsic
        center = np.zeros(3) if extrinsic is None else camera_center(extrinsic[index]).numpy()
        points = points_of(self.scene, self.source, index)
        return surface_normals(points, center).reshape(-1, 3).take(pixels, axis=0)

    def at_most(self, count: int | None, pool: ThreadPoolExecutor, seed: int = SEED) -> "Selection":
        """A random subset, the same share of each image, or the same where there are no more than `count`."""
        total = self.kept
        if count is None or total <= count:
            return self
        # Shares are rounded so that they sum up to `count`; where rounding begins is random, so that no pixel is more
        # likely than another.
        begin = int(np.random.default_rng(seed).integers(total))
        ends = [(int(end) * count + begin) // total for end in np.cumsum(self.per_frame)]
        shares = np.diff([0, *ends])

        def choose(index: int) -> Pixels:
            generator = np.random.default_rng((seed, index))
            ranks = generator.choice(int(self.per_frame[index]), int(shares[index]), replace=False, shuffle=False)
            return self.pixels(index)[np.sort(ranks)]

        few = list(in_order(pool, choose, range(len(self.scene))))
        counts = {**self.counts, "over_max_points": total - count, "written": count}
        return replace(self, few=few, per_frame=shares, counts=counts)

    def cloud(self, pool: ThreadPoolExecutor) -> PointCloud:
        """All kept points, in memory."""
        pieces = list(in_order(pool, self._piece, np.flatnonzero(self.per_frame).tolist()))
        points, colors, confidence, frames, pixels = zip(*pieces, strict=True) if pieces else [[]] * 5
        known = all(part is not None for part in confidence)
        return PointCloud(
            points=np.concatenate([np.empty((0, 3), np.float32), *points]),
            colors=np.concatenate([np.empty((0, 3), np.uint8), *colors]),
            confidence=np.concatenate([np.empty(0, np.float32), *confidence]) if known else None,
            frames=np.concatenate([np.empty(0, np.int32), *frames]),
            pixels=np.concatenate([np.empty(0, np.int64), *pixels]),
            counts=self.counts,
        )

    def _piece(self, index: int) -> tuple[Array, Colors, Array | None, NDArray[np.int32], Pixels]:
        pixels = self.pixels(index)
        frames = np.full(len(pixels), index, dtype=np.int32)
        parts = self.points(index, pixels), self.colors(index, pixels), self.confidence(index, pixels)
        return (*parts, frames, pixels)


def points_of(scene: Scene, source: PointSource, index: int) -> Array:
    """fp32 [H, W, 3]: the world points of all pixels of an image."""
    if source == "world_points":
        assert scene.world_points is not None
        return scene.world_points[index].numpy()
    assert scene.depth is not None
    assert scene.extrinsic is not None
    assert scene.intrinsic is not None
    return unproject(scene.depth[index].numpy(), scene.extrinsic[index].numpy(), scene.intrinsic[index].numpy())


def confidence_of(scene: Scene, source: PointSource, index: int) -> Array | None:
    confidence = scene.depth_conf if source == "depth" else scene.world_points_conf
    return None if confidence is None else confidence[index].numpy()


def finite_of(scene: Scene, source: PointSource, index: int) -> Bits:
    """bool [H, W]: pixels whose point is finite."""
    if source == "world_points":
        assert scene.world_points is not None
        return (np.abs(scene.world_points[index].numpy()) < FARTHEST).all(axis=-1)
    assert scene.depth is not None
    assert scene.extrinsic is not None
    assert scene.intrinsic is not None
    extrinsic, intrinsic = scene.extrinsic[index].numpy(), scene.intrinsic[index].numpy()
    camera = np.isfinite(extrinsic).all() and not np.isnan(intrinsic).any()
    return (np.abs(scene.depth[index].numpy()) < FARTHEST) & bool(camera)
