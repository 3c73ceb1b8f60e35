"""Ranges of observers against arithmetic in NumPy, and what they refuse."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vggt_int8.calibration import CalibrationError
from vggt_int8.calibration.observers import (
    BEYOND,
    MANTISSA_BITS,
    Histogram,
    MeanSquaredError,
    MinMax,
    Observer,
    Percentile,
    PerChannel,
    candidates,
    observer_for,
    squared_error,
)
from vggt_int8.kernels.reference import rotate
from vggt_int8.recipe.scheme import OBSERVERS

BIN = 2.0**-MANTISSA_BITS


def values(rows: int = 400, channels: int = 64, seed: int = 0) -> Tensor:
    return torch.randn(rows, channels, generator=torch.Generator().manual_seed(seed))


def with_outlier(rows: int = 400) -> Tensor:
    x = values(rows)
    x[3, 5] = -40.0
    return x


def seen(observer: Observer, *calls: Tensor) -> Observer:
    for number in range(observer.passes):
        observer.start(number)
        for x in calls:
            observer.add(x)
    return observer


def error_of(x: Tensor, clip: float, weights: Tensor | None = None) -> float:
    """The squared error of codes of the scale clip / 127, in float64."""
    wide, scale = x.double().numpy(), clip / 127
    error = (np.clip(np.rint(wide / scale), -127, 127) * scale - wide) ** 2
    return float((error * (1 if weights is None else weights.double().numpy())).sum())


def test_the_largest_value_of_all_calls() -> None:
    observer = seen(MinMax(), values(), with_outlier(), values(seed=1))
    assert observer.range() == 40.0
    assert observer.rows == 1200


def test_the_largest_value_of_each_channel() -> None:
    observer = PerChannel()
    seen(observer, values(), with_outlier())
    assert observer.channels is not None
    want = torch.cat([values(), with_outlier()]).abs().amax(dim=0)
    assert torch.equal(observer.channels, want)
    assert observer.range() == 40.0


def test_a_percentile_leaves_the_share_beyond_it() -> None:
    x = values(4000, 500)  # two million values, of which twenty may lie beyond
    x[0, :3] = 1000.0
    got = seen(Percentile(), *x.split(900)).range()
    beyond = int((x.abs() > got).sum())
    assert 3 <= beyond <= BEYOND * x.numel()
    exact = float(np.quantile(x.abs().double().numpy(), 1 - BEYOND))
    assert exact <= got * (1 + 1e-6) <= exact * (1 + 2 * BIN)
    assert seen(Percentile(), values(10)).range() == values(10).abs().max().item(), "of few values none"


@pytest.mark.parametrize("scale", [1e-6, 1.0, 3e4])
@pytest.mark.parametrize("kind", ["normal", "outlier", "heavy", "uniform", "constant"])
def test_a_histogram_finds_the_range_of_the_least_squared_error(kind: str, scale: float) -> None:
    x = {
        "normal": values(),
        "outlier": with_outlier(),
        "heavy": values() ** 5,
        "uniform": torch.rand(400, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1,
        "constant": torch.full((400, 64), 1.0),
    }[kind] * scale
    got = seen(Histogram(), *x.split(150)).range()
    ranges = [x.abs().max().item() * factor for factor in candidates()]
    best = min(error_of(x, r) for r in ranges)
    assert got in ranges
    if kind != "constant":  # which any range with a code for it fits: what rounding leaves of one number is chance
        assert error_of(x, got) <= 1.05 * best
    if kind == "outlier":
        assert got < 0.9 * x.abs().max().item()
    if kind in ("uniform", "constant"):
        assert got == pytest.approx(x.abs().max().item(), rel=0.05)


def test_squared_error_of_a_bin_is_that_of_values_spread_over_it() -> None:
    for middle, width in ((0.001, 1e-5), (0.02, 2e-4), (0.31, 0.0025), (0.9, 0.007), (1.4, 0.01)):
        x = torch.linspace(middle - width / 2, middle + width / 2, 2001)
        got = squared_error(torch.tensor([middle]).double(), torch.tensor([width]).double(), 1.0).item()
        want = error_of(x, 1.0) / len(x)
        step = 1 / 127
        assert abs(got - want) <= (0.5 * step) ** 2, (middle, got, want)  # within one value's rounding
        if middle > 1 or middle < 0.003:  # clipped, or rounded to zero
            assert got == pytest.approx(want, rel=0.01)


@pytest.mark.parametrize("rotation", [0, 16])
def test_mse_weighs_channels_by_what_the_layer_makes_of_them(rotation: int) -> None:
    layer = nn.Linear(64, 8)
    layer.weight.data = values(8, seed=2)
    layer.weight.data[:, :32] *= 20
    x = values(200)
    x[:, 40:48] *= 30  # large where the layer hardly looks
    rows = rotate(x, rotation) if rotation else x
    weight = rotate(layer.weight.detach(), rotation) if rotation else layer.weight.detach()
    observer = observer_for("mse", layer.weight.detach, rotation)()
    got = seen(observer, *rows.split(100)).range()
    ranges = [rows.abs().max().item() * factor for factor in candidates()]
    norms = weight.square().sum(dim=0)
    assert error_of(rows, got, norms) <= 1.001 * min(error_of(rows, r, norms) for r in ranges)
    if not rotation:
        assert got < seen(Histogram(), rows).range(), "an unweighted search spares what matters less"


def test_mse_searches_on_some_rows_of_a_long_call() -> None:
    short, long = MeanSquaredError(torch.ones(64)), MeanSquaredError(torch.ones(64))
    x = values(256)
    assert seen(short, x).range() == seen(long, x.repeat_interleave(10, dim=0)).range()


@pytest.mark.parametrize("kind", OBSERVERS)
def test_nan_and_inf_are_refused_and_the_order_of_calls_makes_no_difference(kind: str) -> None:
    make = observer_for(kind, lambda: torch.ones(8, 64), 0)
    for value in (math.nan, math.inf, -math.inf):
        x = values()
        x[7, 7] = value
        with pytest.raises(CalibrationError, match="holds NaN or inf"):
            seen(make(), values(), x)
    calls = [values(seed=seed) * (1 + seed) for seed in range(3)]
    one, other = seen(make(), *calls).range(), seen(make(), *calls[::-1]).range()
    assert one == other
    assert 0 < one <= max(x.abs().max().item() for x in calls)


def test_largest_and_smallest_numbers_have_bins() -> None:
    x = torch.tensor([[torch.finfo(torch.float32).max, torch.finfo(torch.float32).tiny, 1e-45, 0.0]])
    observer = Percentile()
    assert seen(observer, x).range() == torch.finfo(torch.float32).max
    assert observer.counts.sum() == 4
