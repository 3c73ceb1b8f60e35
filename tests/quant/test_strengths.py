"""What of inputs decides how strongly a seam is smoothed: sizes, rows that are kept, errors, and the search."""

import math

import pytest
import torch
from torch import Tensor, nn

from tests.quant.numbers import randn
from vggt_int8.kernels.reference import rotate
from vggt_int8.quant import Int8Linear
from vggt_int8.quant.smoothing import column_sizes, factors
from vggt_int8.quant.strengths import ROWS, STRENGTHS, InputSample, output_error, seam_factors
from vggt_int8.recipe import Scheme


def sampled(*parts: Tensor) -> InputSample:
    sample = InputSample()
    for part in parts:
        sample.add(part)
    return sample


@pytest.mark.parametrize("count", [1, ROWS, 2 * ROWS - 1, 2 * ROWS, 5 * ROWS + 7, 16 * ROWS])
def test_a_sample_has_all_sizes_and_some_rows_however_they_come(count: int) -> None:
    x = randn(count, 8) * torch.arange(8)
    x[:, 1] = torch.arange(count)  # the number of the row
    whole, parted = sampled(x), sampled(*x.split(53))
    assert torch.allclose(whole.sizes, x.double().square().mean(0).sqrt(), rtol=1e-12)
    assert torch.allclose(whole.sizes, parted.sizes, rtol=1e-12)
    assert torch.equal(whole.rows, parted.rows)
    numbers = whole.rows[:, 1].long()
    assert torch.equal(whole.rows, x[numbers])
    assert min(count, ROWS) <= len(numbers) < 2 * ROWS
    steps = numbers.diff()
    assert numbers[0] == 0
    assert bool((steps == steps[:1]).all()), "rows are evenly spread"
    assert count - numbers[-1] <= (steps[0] if len(steps) else 1)


def test_a_sample_of_nothing_says_so() -> None:
    with pytest.raises(ValueError, match="no input was seen"):
        _ = InputSample().sizes


@pytest.mark.parametrize(
    "scheme",
    [Scheme("none"), Scheme("dynamic"), Scheme("dynamic", rotation=8), Scheme("static"), Scheme("static", rotation=8)],
    ids=lambda scheme: scheme.label,
)
def test_the_error_is_that_of_the_layer(scheme: Scheme) -> None:
    """As an `Int8Linear` of the folded weight makes it, for inputs that are divided."""
    weight, x, f = randn(12, 24, seed=1), randn(40, 24, seed=2) * torch.arange(1, 25), torch.arange(1.0, 25).sqrt()
    folded = nn.Linear(24, 12, bias=False)
    folded.weight = nn.Parameter(weight * f)
    divided = x / f
    group = scheme.rotation_of(24)
    largest = (rotate(divided, group) if group else divided).abs().max().item()
    layer = Int8Linear.from_linear(
        folded,
        scheme.activations,
        input_scale=largest / 127 if scheme.activations == "static" else None,
        rotation=scheme.rotation,
    )
    by_layer = (layer(divided) - x @ weight.t()).double().square().sum().item()
    assert output_error(weight, x, f.double(), scheme) == pytest.approx(by_layer, rel=1e-3)
    assert by_layer > 0


@pytest.mark.parametrize("scheme", [Scheme("none"), Scheme("dynamic"), Scheme("dynamic", rotation=8)])
@pytest.mark.parametrize("outlier", [1.0, 60.0])
def test_the_search_takes_the_least_error(scheme: Scheme, outlier: float) -> None:
    weight, x = randn(12, 24, seed=3), randn(100, 24, seed=4)
    x[:, 5] *= outlier
    sample = sampled(x)
    f, strength = seam_factors(weight, sample, scheme, "search")
    sizes, columns = x.square().mean(0).sqrt(), column_sizes(weight)
    errors = {0.0: output_error(weight, x, torch.ones(24), scheme)}
    errors |= {each: output_error(weight, x, factors(sizes, columns, each), scheme) for each in STRENGTHS}
    assert strength == min(errors, key=errors.__getitem__)
    assert output_error(weight, x, f, scheme) == pytest.approx(errors[strength], rel=1e-3)
    if outlier > 1 and scheme.activations == "dynamic":
        assert errors[strength] < 0.5 * errors[0.0]


def test_a_strength_is_taken_as_it_is_given() -> None:
    weight, x = randn(12, 24, seed=3), randn(100, 24, seed=4)
    f, strength = seam_factors(weight, sampled(x), Scheme("dynamic"), 0.25)
    assert strength == 0.25
    raw = x.square().mean(0).sqrt() ** 0.25 / weight.square().mean(0).sqrt() ** 0.75
    ratio = f / raw
    assert math.isclose(ratio.max().item(), ratio.min().item(), rel_tol=1e-5)
