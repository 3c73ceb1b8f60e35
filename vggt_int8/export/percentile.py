"""Exact percentiles of more values than fit in memory, in two passes.

The bits of a float, read as an integer, have the order of the floats (with negative ones reversed). The first pass
counts the upper halves of the bits, the second the lower halves of those values that share the upper half with a wanted
one. Memory does not grow with the number of values, also if all are equal.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Counts = NDArray[np.int64]
Halves = list[tuple[NDArray[np.uint16], Counts]]  # of each wanted bin: lower halves that occur, and how often
_BINS = 1 << 16


def counts_of(values: Array) -> Counts:
    """int64 [65536]: how many numbers have each upper half. Counts of parts add up."""
    return np.bincount(_upper_half(values), minlength=_BINS)


def percentiles(
    counts: Counts,
    percents: Sequence[float],
    look_again: Callable[[Callable[[Array], Halves]], Iterable[Halves]],
) -> list[float]:
    """Percentiles of finite numbers as `np.percentile` has them, linear between two of them.

    counts: the sum of `counts_of` over all of them, at least one. look_again: applies a function to all of them once
    more, in parts, and gives what it returns.
    """
    total, ends = int(counts.sum()), np.cumsum(counts)
    places = [(total - 1) * percent / 100 for percent in percents]
    pairs = [(math.floor(place), min(math.floor(place) + 1, total - 1)) for place in places]
    bins = {rank: int(np.searchsorted(ends, rank, side="right")) for pair in pairs for rank in pair}
    wanted = sorted(set(bins.values()))

    def near(values: Array) -> Halves:
        upper = _upper_half(values)
        return [np.unique(_lower_half(values[upper == each]), return_counts=True) for each in wanted]

    inside = np.zeros((len(wanted), _BINS), np.int64)
    for part in look_again(near):
        for row, (lower, number_of) in zip(inside, part, strict=True):
            row[lower] += number_of
    inside = np.cumsum(inside, axis=1)

    def number(rank: int) -> float:
        upper = bins[rank]
        before = int(ends[upper - 1]) if upper else 0
        lower = int(np.searchsorted(inside[wanted.index(upper)], rank - before, side="right"))
        return _float_of(upper, lower)

    results = []
    for place, pair in zip(places, pairs, strict=True):
        low, high = map(number, pair)
        results.append(low + (high - low) * (place - pair[0]))
    return results


def _upper_half(values: Array) -> NDArray[np.uint16]:
    """uint16: the upper half of the bits, so that a larger one means a larger number."""
    halves = np.ascontiguousarray(values, dtype="<f4").reshape(-1).view("<u2")[1::2]
    if not halves.size or halves.max() < 0x8000:  # none is negative: half of the steps
        return halves | np.uint16(0x8000)
    return np.where(halves & 0x8000 != 0, ~halves, halves | np.uint16(0x8000))


def _lower_half(values: Array) -> NDArray[np.uint16]:
    """uint16: the lower half of the bits, so that of two with one upper half the larger means a larger number."""
    halves = np.ascontiguousarray(values, dtype="<f4").reshape(-1).view("<u2")
    return np.where(halves[1::2] & 0x8000 != 0, ~halves[::2], halves[::2])


def _float_of(upper: int, lower: int) -> float:
    """The number whose bits these are halves of."""
    bits = upper << 16 | lower
    bits = bits ^ 0x80000000 if bits & 0x80000000 else bits ^ 0xFFFFFFFF
    return float(np.array(bits, dtype="<u4").view("<f4"))
