"""Paired bootstrap intervals: exact where they must be, and about as wide as theory says."""

import math

import numpy as np
import pytest

from vggt_int8.scorecard.intervals import paired_interval


def test_the_same_shift_everywhere_is_certain() -> None:
    first = [1.0, 5.0, 20.0, 3.0]
    assert paired_interval(first, [value + 2 for value in first]) == pytest.approx((2, 2, 2))
    assert paired_interval(first, [1.1 * value for value in first], relative=True) == pytest.approx((10, 10, 10))


def test_its_width_is_that_of_the_standard_error() -> None:
    """Differences of variance 1 over n scenes: a mean of them lies within 1.96 / sqrt(n) in 95 of 100 cases."""
    random = np.random.default_rng(0)
    first = random.normal(50, 30, size=400)
    change = random.normal(0, 1, size=400)
    found = paired_interval(first.tolist(), (first + change).tolist())
    assert found.value == pytest.approx(change.mean())
    half = 1.96 * change.std() / math.sqrt(400)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)
    assert (found.high + found.low) / 2 == pytest.approx(found.value, abs=0.1 * half)


def test_the_seed_decides() -> None:
    first, second = [1.0, 2.0, 4.0], [2.0, 1.0, 9.0]
    assert paired_interval(first, second, seed=3) == paired_interval(first, second, seed=3)
    by_hand = [np.mean([second[i] - first[i] for i in drawn]) for drawn in np.ndindex(3, 3, 3)]
    found = paired_interval(first, second)
    assert found.low == pytest.approx(min(by_hand))  # three times the worst scene: 1 in 27, so within the lowest 2.5 %
    assert found.high == pytest.approx(max(by_hand))


def test_nan_shows_and_bad_input_is_named() -> None:
    assert math.isnan(paired_interval([1.0, 2.0], [1.0, math.nan]).value)
    with pytest.raises(ValueError, match="2 and 1 values"):
        paired_interval([1.0, 2.0], [1.0])
