"""A percentile of more numbers than should be held at once: exact, from two looks at them.

The bits of a float, read as an integer, are in the order of the floats (negative ones turned around). The first look
counts the upper half of the bits, the second sorts those numbers that share the upper half with the wanted ones.
"""

import math
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
_BINS = 1 << 16


def counts_of(values: Array) -> NDArray[np.int64]:
    """int64 [65536]: how many numbers have each upper half. Counts of parts add up."""
    return np.bincount(_upper_half(values), minlength=_BINS)


def percentile(counts: NDArray[np.int64], percent: float, look_again: Callable[[], Iterable[Array]]) -> float:
    """The percentile of finite numbers as `np.percentile` has it, linear between two of them.

    counts: the sum of `counts_of` over all of them, at least one. look_again: gives all of them once more, in parts.
    """
    total = int(counts.sum())
    place = (total - 1) * percent / 100
    ranks = [math.floor(place), min(math.floor(place) + 1, total - 1)]
    ends = np.cumsum(counts)
    bins = [int(np.searchsorted(ends, rank, side="right")) for rank in ranks]
    inside: list[Array] = []
    for values in look_again():
        halves = _upper_half(values)
        inside.append(values[(halves >= bins[0]) & (halves <= bins[1])])
    near = np.sort(np.concatenate(inside))
    before = int(ends[bins[0] - 1]) if bins[0] else 0
    low, high = (float(near[rank - before]) for rank in ranks)
    return low + (high - low) * (place - ranks[0])


def _upper_half(values: Array) -> NDArray[np.uint16]:
    """uint16: the upper half of the bits, so that a larger one means a larger number."""
    halves = (np.ascontiguousarray(values, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16)
    negative = halves & 0x8000 != 0
    return np.where(negative, ~halves, halves | np.uint16(0x8000))
