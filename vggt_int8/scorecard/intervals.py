"""Confidence intervals of the difference between two models: paired bootstrap over scenes.

Both models saw the same scenes, so scenes are drawn with replacement, in pairs, and the difference of the two means is
computed each time; the interval holds the middle 95 % of these differences (Efron, "Bootstrap Methods: Another Look at
the Jackknife", 1979: the percentile interval). It describes other scenes of the same kind, and says nothing about other
kinds of scenes. With few scenes the interval is too narrow; below ten it is only a hint.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
LEVEL = 95.0  # per cent


class Interval(NamedTuple):
    value: float
    low: float
    high: float


def paired_interval(first: list[float], second: list[float], *, relative: bool = False, seed: int = 0) -> Interval:
    """One value a scene, of two models, in the same order -> mean(second) - mean(first), and its interval.

    relative: in per cent of mean(first) instead. The same seed gives the same scenes, whatever the metric. NaN where a
    value is NaN. Raises ValueError for no scenes, or other numbers of scenes.
    """
    if len(first) != len(second) or not first:
        raise ValueError(
            f"{len(first)} and {len(second)} values: a paired interval needs the same scenes, at least one"
        )
    values = np.array([first, second], dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(len(first), size=(RESAMPLES, len(first)))
    means = np.stack([row[drawn].mean(axis=1) for row in values])
    low, high = np.percentile(_difference(means, relative), [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return Interval(float(_difference(values.mean(axis=1), relative)), float(low), float(high))


def _difference(means: NDArray[np.float64], relative: bool) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return 100 * (means[1] / means[0] - 1) if relative else means[1] - means[0]
