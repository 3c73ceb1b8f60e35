"""Points of a saved scene for display in a browser: a random sample of pixels with filters and colours.

A scene with a thousand frames has hundreds of millions of points. They are read one frame at a time, and a fixed number
of pixels, spread evenly over all frames, is kept; the filter shows at most a given number of these. Two scenes of the
same images keep the same pixels, so their points correspond.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vggt_int8.export import Scene
from vggt_int8.export.color import Array, Colors, colorize, robust_range
from vggt_int8.export.frames import content_of, frame_pool, in_order
from vggt_int8.export.points import point_source
from vggt_int8.export.selection import FARTHEST, PointSource, confidence_of, points_of

SEED = 0  # of which pixels are kept, and which of them are shown first
KEPT_PER_SHOWN = 4  # pixels that are kept for each that may be shown, so that a strong filter leaves enough


@dataclass(frozen=True)
class Cloud:
    """N sampled pixels of a scene, in frame order. Points that are not finite are included but never shown."""

    points: Array  # [N, 3] fp32, world
    colors: Colors  # [N, 3] uint8, sRGB
    confidence: Array | None  # [N]
    pixels: int  # of all images, without padding and transparent ones: what the sample is of

    @cached_property
    def usable(self) -> NDArray[np.bool_]:
        """[N]: point and confidence are finite; the same rule as for exports."""
        usable = np.all(np.abs(self.points) < FARTHEST, axis=1)
        return usable if self.confidence is None else usable & np.isfinite(self.confidence)

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        return np.random.default_rng(SEED).permutation(len(self.points))

    def passing(self, percentile: float) -> NDArray[np.bool_]:
        """[N]: usable, with a confidence of at least the given percentile (0 to 100) of usable points."""
        if self.confidence is None or not self.usable.any():
            return self.usable
        return self.usable & (self.confidence >= np.percentile(self.confidence[self.usable], percentile))

    def chosen(self, percentile: float, most: int) -> NDArray[np.int64]:
        """The points to show: at most the given number of those that pass. A weaker filter shows the same points and
        more.
        """
        passing = self._order[self.passing(percentile)[self._order]]
        return np.sort(passing[:most])


def sample_cloud(scene: Scene, source: PointSource | None, most: int) -> Cloud:
    """Keep at most `most` pixels, the same fraction of each image.

    source: "depth" (with the cameras), "world_points" (the point head), or None for the first one that is available.
        Raises ValueError if the scene has no such points.
    """
    source = known_source(scene, source)
    height, width = scene.size
    with frame_pool(scene.release_pages) as pool:
        pixels = sum(in_order(pool, lambda transform: int(np.count_nonzero(content_of(transform))), scene.transforms))
        share = min(1.0, most / max(pixels, 1))

        def sample(index: int) -> tuple[Array, Colors, Array | None]:
            picked = _picked(np.flatnonzero(content_of(scene.transforms[index])), share, index)
            confidence = confidence_of(scene, source, index)
            return (
                points_of(scene, source, index).reshape(-1, 3)[picked],
                scene.colors[index].reshape(height * width, 3).numpy()[picked],
                None if confidence is None else confidence.reshape(-1)[picked],
            )

        points, colors, confidences = zip(*in_order(pool, sample, range(len(scene))), strict=True)
    known = [confidence for confidence in confidences if confidence is not None]
    return Cloud(np.concatenate(points), np.concatenate(colors), np.concatenate(known) if known else None, pixels)


def _picked(inside: NDArray[np.intp], share: float, index: int) -> NDArray[np.intp]:
    """A deterministic random fraction of the pixels `inside`."""
    if share == 1:
        return inside
    random = np.random.default_rng((SEED, index))
    return np.sort(random.choice(inside, int(len(inside) * share), replace=False, shuffle=False))


def known_source(scene: Scene, wanted: PointSource | None) -> PointSource:
    """Like `point_source`, but also raises ValueError if there are no points at all."""
    source = point_source(scene, wanted)
    if source is None:
        raise ValueError("the scene has no points; it has neither depth and cameras nor points of the point head")
    return source


def confidence_colors(confidence: Array) -> tuple[Colors, tuple[float, float]]:
    """[N] -> [N, 3] on a logarithmic scale, and the two values at the ends of the scale."""
    logs = np.log(np.maximum(confidence, np.float32(1e-6)))
    low, high = robust_range(logs)
    return colorize(((logs - low) / (high - low)).astype(np.float32)), (float(np.exp(low)), float(np.exp(high)))


def difference_colors(difference: Array) -> tuple[Colors, float]:
    """[N] -> [N, 3], dark for no difference, and the difference at the bright end of the scale."""
    largest = robust_range(difference)[1]
    return colorize(difference / np.float32(largest)), largest
