"""Which pixels of a scene become points: those the images show, without non-finite, uncertain or surplus ones.

All filters count what they remove, and the counts add up to the number of pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from vggt_int8.export.color import Array
from vggt_int8.export.frames import content_box, content_of, depth_steps, frame_pool, in_order
from vggt_int8.export.masks import find_masks, read_mask
from vggt_int8.export.percentile import Halves, counts_of, percentiles
from vggt_int8.export.selection import SEED, PointCloud, PointSource, Selection, confidence_of, finite_of
from vggt_int8.export.voxels import VoxelGrid
from vggt_int8.plain_data import check_integer, shown
from vggt_int8.scene.scene import Scene

# Where pixels go: the filters in the order in which they apply.
_COUNTS = (
    *("written", "padding", "transparent", "masked", "not_finite", "low_confidence", "edges", "voxel"),
    "over_max_points",
)


@dataclass(frozen=True)
class PointOptions:
    """Which points are kept; the filters apply in this order.

    source: `depth` (unprojected with the cameras, which is more accurate according to VGGT's authors) or `world_points`
        (the point head). None uses `depth` if the scene has depth and cameras.
    masks: a folder of masks, one per image, with its stem: white is kept, black removed.
    confidence_percentile: drop points whose confidence is below this percentile of the finite ones, 0 to 100.
    min_confidence: drop points whose confidence is below this number; the network's start at 1.
    edges: drop pixels around which depth changes by more than this fraction: 0.05 is 5 %.
    voxel: keep only the most confident point in each cube of this size, in the scene's unit.
    max_points: keep a random subset of at most this many, the same for the same seed. None: all, or a format's own
        limit.
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


def select_points(scene: Scene, options: PointOptions, pool: ThreadPoolExecutor) -> Selection | None:
    """Apply all filters but `max_points`; None if the scene has no points.

    Raises ValueError if the head for `options.source` or `options.edges` did not run, or no mask fits; errors of
    reading masks.
    """
    source = point_source(scene, options.source)
    if source is None:
        return None
    if options.edges is not None and scene.depth is None:
        raise ValueError(f"edges is {options.edges:g}: steps are looked for in depth, and the depth head did not run")
    masks = None if options.masks is None else find_masks(options.masks, scene)
    return _select(scene, source, options, masks, pool)


def collect_points(scene: Scene, options: PointOptions | None = None) -> PointCloud | None:
    """`select_points` with `max_points`, as arrays in memory; None if the scene has no points."""
    options = options or PointOptions()
    with frame_pool() as pool:
        selection = select_points(scene, options, pool)
        return None if selection is None else selection.at_most(options.max_points, pool, options.seed).cloud(pool)


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


def _select(
    scene: Scene,
    source: PointSource,
    options: PointOptions,
    masks: Sequence[Path] | None,
    pool: ThreadPoolExecutor,
) -> Selection:
    selection, histogram = _shown_and_finite(scene, source, masks, pool)
    threshold = None
    if histogram is not None and histogram.any():
        threshold = _percentile(selection, histogram, options.confidence_percentile, pool)
        threshold = max(threshold, options.min_confidence or threshold)
    selection = _filter(selection, "low_confidence", pool, lambda i: confidence_of(scene, source, i), threshold)
    if options.edges is not None:
        assert scene.depth is not None
        depth = scene.depth
        # Negated, so that a step of NaN is one that is too large.
        selection = _filter(selection, "edges", pool, lambda i: -depth_steps(depth[i].numpy()), -options.edges)
    if options.voxel is not None:
        selection = _filter_voxels(selection, options.voxel, pool)
    return replace(selection, counts={**selection.counts, "written": selection.kept})


def _shown_and_finite(
    scene: Scene, source: PointSource, masks: Sequence[Path] | None, pool: ThreadPoolExecutor
) -> tuple[Selection, NDArray[np.int64] | None]:
    """What can be said of every frame by itself, and the counts of confidence for a percentile, if there is any."""
    size = scene.size[0] * scene.size[1]

    def look(index: int) -> tuple[NDArray[np.uint8], dict[str, int], NDArray[np.int64] | None]:
        transform = scene.transforms[index]
        content, (left, top, right, bottom) = content_of(transform), content_box(transform)
        inside, shown = max(bottom - top, 0) * max(right - left, 0), int(np.count_nonzero(content))
        kept = content if masks is None else content & read_mask(masks[index], transform)
        confidence = confidence_of(scene, source, index)
        finite = kept & finite_of(scene, source, index)
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

    counts = dict.fromkeys(_COUNTS, 0)
    bits: list[NDArray[np.uint8]] = []
    histogram: NDArray[np.int64] | None = None
    for frame_bits, here, here_counts in in_order(pool, look, range(len(scene))):
        bits.append(frame_bits)
        for name, number in here.items():
            counts[name] += number
        if here_counts is not None:
            histogram = here_counts if histogram is None else histogram + here_counts
    return Selection(scene, source, counts, _kept_of(bits), bits), histogram


def _percentile(selection: Selection, histogram: NDArray[np.int64], percent: float, pool: ThreadPoolExecutor) -> float:
    """Of the confidence of all pixels that are selected."""

    def look_again(near: Callable[[Array], Halves]) -> Iterator[Halves]:
        def confidences(index: int) -> Halves:
            confidence = confidence_of(selection.scene, selection.source, index)
            assert confidence is not None
            return near(confidence.reshape(-1)[selection.mask(index)])

        return in_order(pool, confidences, range(len(selection.scene)))

    return percentiles(histogram, [percent], look_again)[0]


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
    per_frame = _kept_of(bits)
    counts = {**selection.counts, name: selection.kept - int(per_frame.sum())}
    return replace(selection, bits=bits, per_frame=per_frame, counts=counts)


def _kept_of(bits: list[NDArray[np.uint8]]) -> NDArray[np.int64]:
    return np.array([int(np.bitwise_count(frame).sum()) for frame in bits])


def _check_number(name: str, value: Any, low: float, high: float, *, above: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        bounds = f"from {low:g} to {high:g}" if high < np.inf else f"{'above' if above else 'of at least'} {low:g}"
        raise TypeError(f"{name} is {shown(value)}; it must be a number {bounds}")
    number = float(value)
    if not low <= number <= high or number == np.inf or (above and number == low):
        bounds = f"from {low:g} to {high:g}" if high < np.inf else f"{'above' if above else 'at least'} {low:g}"
        raise ValueError(f"{name} is {value}; it must be {bounds}")
