"""Exact percentiles of more values than fit in memory, in two passes.

The bits of a float, read as an integer, have the order of the floats (with negative ones reversed). The first pass
counts the upper half of the bits, the second sorts the values that share the upper half with the wanted ones.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
_BINS = 1 << 16


def counts_of(values: Array) -> NDArray[np.int64]:
    """int64 [65536]: how many numbers have each upper half. Counts of parts add up."""
    return np.bincount(_upper_half(values), minlength=_BINS)


def percentiles(
    counts: NDArray[np.int64],
    percents: Sequence[float],
    look_again: Callable[[Callable[[Array], list[Array]]], Iterable[list[Array]]],
) -> list[float]:
    """Percentiles of finite numbers as `np.percentile` has them, linear between two of them.

    counts: the sum of `counts_of` over all of them, at least one. look_again: applies a function to all of them once
    more, in parts, and gives what it returns.
    """
    total, ends = int(counts.sum()), np.cumsum(counts)
    places = [(total - 1) * percent / 100 for percent in percents]
    ranks = [(math.floor(place), min(math.floor(place) + 1, total - 1)) for place in places]
    bins = [tuple(int(np.searchsorted(ends, rank, side="right")) for rank in pair) for pair in ranks]

    def near(values: Array) -> list[Array]:
        halves = _upper_half(values)
        return [values[(halves >= low) & (halves <= high)] for low, high in bins]

    found = [np.sort(np.concatenate(parts)) for parts in zip(*look_again(near), strict=True)]
    results = []
    for place, pair, (first, _), values in zip(places, ranks, bins, found, strict=True):
        before = int(ends[first - 1]) if first else 0
        low, high = (float(values[rank - before]) for rank in pair)
        results.append(low + (high - low) * (place - pair[0]))
    return results


def _upper_half(values: Array) -> NDArray[np.uint16]:
    """uint16: the upper half of the bits, so that a larger one means a larger number."""
    halves = np.ascontiguousarray(values, dtype="<f4").reshape(-1).view("<u2")[1::2]
    if not halves.size or halves.max() < 0x8000:  # none is negative: half of the steps
        return halves | np.uint16(0x8000)
    return np.where(halves & 0x8000 != 0, ~halves, halves | np.uint16(0x8000))
