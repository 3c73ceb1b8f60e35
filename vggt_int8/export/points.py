"""Which pixels of a scene become points: what the images show, without what is not finite, doubtful, or too much.

`Selection` holds a bit per pixel, so a scene of any length is filtered frame by frame; every format then takes its
points from one. All filters count what they leave out, and the counts sum up to all pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import pairwise
from numbers import Real
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vggt_int8.export.color import Array, Colors
from vggt_int8.export.frames import content_box, content_of, depth_steps, frame_pool, in_order, surface_normals
from vggt_int8.export.masks import find_masks, read_mask
from vggt_int8.export.percentile import counts_of, percentiles
from vggt_int8.export.voxels import VoxelGrid
from vggt_int8.geometry import camera_center
from vggt_int8.plain_data import check_integer, shown
from vggt_int8.scene.scene import Scene
from vggt_int8.scene.unproject import unproject, unproject_pixels

PointSource = Literal["depth", "world_points"]
SEED = 0  # of the random subset under `max_points`
FARTHEST = np.float32(1e30)  # a depth or coordinate beyond this would overflow on its way into the world
Bits = NDArray[np.bool_]
Pixels = NDArray[np.int64]


@dataclass(frozen=True)
class PointOptions:
    """Which points are kept; the filters apply in this order.

    source: `depth` (unprojected with the cameras, the more accurate way by VGGT's authors) or `world_points` (the
        point head). None takes `depth` where the scene has depth and cameras.
    masks: a folder of masks, one per image, of its stem: white stays, black goes.
    confidence_percentile: drop points whose confidence lies below this percentile of the finite ones, 0 to 100.
    min_confidence: drop points whose confidence lies below this number; the network's start at 1.
    edges: drop pixels around which depth changes by more than this part of itself: 0.05 is 5 %.
    voxel: keep only the most confident point in each cube of this size, in the scene's unit.
    max_points: keep a random subset of at most this many, the same for the same seed. None: all, or as many as a
        format is made for.
    """

    source: PointSource | None = None
    masks: Path | None = None
    confidence_percentile: float = 25.0
    min_confidence: float | None = None
    edges: float | None = None
    voxel: float | None = None
    max_points: int | None = None
    seed: int = SEED

    def __post_init__(self) -> None:
        if self.source is not None and self.source not in get_args(PointSource):
            kinds = " or ".join(map(repr, get_args(PointSource)))
            raise ValueError(f"source is {self.source!r}; it must be {kinds}, or None")
        _check_number("confidence_percentile", self.confidence_percentile, 0, 100)
        for name, low in (("min_confidence", 0.0), ("edges", 0.0), ("voxel", 0.0)):
            if getattr(self, name) is not None:
                _check_number(name, getattr(self, name), low, np.inf, above=name == "voxel")
        if self.max_points is not None:
            check_integer("max_points", self.max_points, ", or None for all")
            if self.max_points < 1:
                raise ValueError(f"max_points is {self.max_points}; it must be at least 1, or None for all")


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

    def at_most(self, count: int | None, seed: int = SEED) -> "Selection":
        """A random subset, or the same where there are no more than `count`."""
        if count is None or self.kept <= count:
            return self
        chosen = random_ranks(self.kept, count, seed)
        starts = np.concatenate([[0], np.cumsum(self.per_frame)])
        places = np.searchsorted(chosen, starts)
        few = [
            self.pixels(index)[chosen[low:high] - starts[index]] if high > low else np.empty(0, np.int64)
            for index, (low, high) in enumerate(pairwise(places))
        ]
        counts = {**self.counts, "over_max_points": self.kept - count, "written": count}
        return replace(self, few=few, per_frame=np.diff(places), counts=counts)

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


def random_ranks(total: int, count: int, seed: int) -> NDArray[np.int64]:
    """int64 [count]: different numbers below `total`, all sets of them equally likely, ascending.

    Memory is for `count` numbers, where NumPy's `choice` holds all of `total`. What comes twice is drawn again.
    """
    if 2 * count > total:  # by what is left out, or most draws would come twice
        kept = np.ones(total, np.bool_)
        kept[random_ranks(total, total - count, seed)] = False
        return np.flatnonzero(kept)
    generator = np.random.default_rng(seed)
    found = np.empty(0, np.int64)
    while len(found) < count:
        found = np.sort(np.concatenate([found, generator.integers(0, total, count - len(found))]))
        found = found[np.concatenate([[True], found[1:] != found[:-1]])]
    return found


def select_points(scene: Scene, options: PointOptions, pool: ThreadPoolExecutor) -> Selection | None:
    """Apply all filters but `max_points`; None if the scene has no points.

    Raises ValueError if the head for `options.source` did not run, or no mask fits; errors of reading masks.
    """
    source = point_source(scene, options.source)
    if source is None:
        return None
    masks = None if options.masks is None else find_masks(options.masks, scene)
    return _select(scene, source, options, masks, pool)


def collect_points(scene: Scene, options: PointOptions | None = None) -> PointCloud | None:
    """`select_points` with `max_points`, as arrays in memory; None if the scene has no points."""
    options = options or PointOptions()
    with frame_pool() as pool:
        selection = select_points(scene, options, pool)
        return None if selection is None else selection.at_most(options.max_points, options.seed).cloud(pool)


def point_source(scene: Scene, wanted: PointSource | None) -> PointSource | None:
    """Where points come from. Raises ValueError if what is wanted is not there."""
    from_depth = scene.depth is not None and scene.extrinsic is not None and scene.intrinsic is not None
    there = {"depth": from_depth, "world_points": scene.world_points is not None}
    if wanted is not None and not there[wanted]:
        needs = "the depth and camera heads" if wanted == "depth" else "the point head"
        raise ValueError(f"source {wanted!r} needs {needs}, which did not run")
    if wanted is not None:
        return wanted
    return next((source for source in get_args(PointSource) if there[source]), None)


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


def _select(
    scene: Scene,
    source: PointSource,
    options: PointOptions,
    masks: Sequence[Path] | None,
    pool: ThreadPoolExecutor,
) -> Selection:
    frames = range(len(scene))
    counts = dict.fromkeys(
        ("written", "padding", "transparent", "masked", "not_finite", "low_confidence", "edges", "voxel"), 0
    )
    counts["over_max_points"] = 0
    size = scene.size[0] * scene.size[1]

    def look(index: int) -> tuple[NDArray[np.uint8], dict[str, int], NDArray[np.int64] | None]:
        """What can be said of a frame by itself, and the counts for the percentile."""
        transform = scene.transforms[index]
        content, (left, top, right, bottom) = content_of(transform), content_box(transform)
        inside, shown = max(bottom - top, 0) * max(right - left, 0), int(np.count_nonzero(content))
        kept = content if masks is None else content & read_mask(masks[index], transform)
        confidence = confidence_of(scene, source, index)
        finite = kept & _finite(scene, source, index)
        if confidence is not None:
            finite &= np.isfinite(confidence)
        unmasked = int(np.count_nonzero(kept))
        here = {
            "padding": size - inside,
            "transparent": inside - shown,
            "masked": shown - unmasked,
            "not_finite": unmasked - int(np.count_nonzero(finite)),
        }
        return np.packbits(finite), here, None if confidence is None else counts_of(confidence[finite])

    bits: list[NDArray[np.uint8]] = []
    histogram: NDArray[np.int64] | None = None
    for frame_bits, here, here_counts in in_order(pool, look, frames):
        bits.append(frame_bits)
        for name, number in here.items():
            counts[name] += number
        if here_counts is not None:
            histogram = here_counts if histogram is None else histogram + here_counts
    selection = Selection(scene, source, counts, np.array([int(np.bitwise_count(b).sum()) for b in bits]), bits)

    threshold = None
    if histogram is not None and histogram.any():

        def look_again(near: Callable[[Array], list[Array]]) -> Iterator[list[Array]]:
            def confidences(index: int) -> list[Array]:
                confidence = confidence_of(scene, source, index)
                assert confidence is not None
                return near(confidence.reshape(-1)[selection.mask(index)])

            return in_order(pool, confidences, frames)

        (threshold,) = percentiles(histogram, [options.confidence_percentile], look_again)
        threshold = max(threshold, options.min_confidence or threshold)
    selection = _filter(selection, "low_confidence", pool, lambda i: confidence_of(scene, source, i), threshold)
    if options.edges is not None and scene.depth is not None:
        depth = scene.depth
        # Negated, so that a step of NaN is one that is too large.
        selection = _filter(selection, "edges", pool, lambda i: -depth_steps(depth[i].numpy()), -options.edges)
    if options.voxel is not None:
        selection = _filter_voxels(selection, options.voxel, pool)
    return replace(selection, counts={**selection.counts, "written": selection.kept})


def _filter(
    selection: Selection, name: str, pool: ThreadPoolExecutor, values: Any, threshold: float | None
) -> Selection:
    """Keep pixels whose value is at least the threshold."""
    if threshold is None:
        return selection

    def look(index: int) -> NDArray[np.uint8]:
        return np.packbits(selection.mask(index) & (values(index).reshape(-1) >= threshold))

    return _with_bits(selection, name, list(in_order(pool, look, range(len(selection.scene)))))


def _filter_voxels(selection: Selection, size: float, pool: ThreadPoolExecutor) -> Selection:
    grid = VoxelGrid(size)

    def look(index: int) -> tuple[Array, Array]:
        pixels = selection.pixels(index)
        confidence = selection.confidence(index, pixels)
        return selection.points(index, pixels), np.ones(len(pixels), np.float32) if confidence is None else confidence

    for points, confidence in in_order(pool, look, range(len(selection.scene))):
        grid.add(points, confidence)
    chosen = grid.finish()  # ranks among all kept pixels
    starts = np.concatenate([[0], np.cumsum(selection.per_frame)])

    def thin(index: int) -> NDArray[np.uint8]:
        low, high = np.searchsorted(chosen, starts[index : index + 2])
        mask = np.zeros(selection.scene.size[0] * selection.scene.size[1], dtype=np.bool_)
        mask[selection.pixels(index)[chosen[low:high] - starts[index]]] = True
        return np.packbits(mask)

    return _with_bits(selection, "voxel", list(in_order(pool, thin, range(len(selection.scene)))))


def _with_bits(selection: Selection, name: str, bits: list[NDArray[np.uint8]]) -> Selection:
    per_frame = np.array([int(np.bitwise_count(frame).sum()) for frame in bits])
    counts = {**selection.counts, name: selection.kept - int(per_frame.sum())}
    return replace(selection, bits=bits, per_frame=per_frame, counts=counts)


def _finite(scene: Scene, source: PointSource, index: int) -> Bits:
    """bool [H, W]: pixels whose point is finite."""
    if source == "world_points":
        assert scene.world_points is not None
        return (np.abs(scene.world_points[index].numpy()) < FARTHEST).all(axis=-1)
    assert scene.depth is not None
    assert scene.extrinsic is not None
    assert scene.intrinsic is not None
    camera = scene.extrinsic[index].isfinite().all() and not scene.intrinsic[index].isnan().any()
    return (np.abs(scene.depth[index].numpy()) < FARTHEST) & bool(camera)


def _check_number(name: str, value: Any, low: float, high: float, *, above: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        bounds = f"from {low:g} to {high:g}" if high < np.inf else f"{'above' if above else 'of at least'} {low:g}"
        raise TypeError(f"{name} is {shown(value)}; it must be a number {bounds}")
    number = float(value)
    if not low <= number <= high or number == np.inf or (above and number == low):
        bounds = f"from {low:g} to {high:g}" if high < np.inf else f"{'above' if above else 'at least'} {low:g}"
        raise ValueError(f"{name} is {value}; it must be {bounds}")
