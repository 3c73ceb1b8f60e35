"""Rounding by inputs: against least squares done anew for every column, and against rounding to the nearest."""

import pytest
import torch
from torch import Tensor

from vggt_int8.kernels.reference import quantize
from vggt_int8.quant.gptq import DAMPING, round_by_inputs


def inputs(rows: int, k: int, seed: int = 0) -> Tensor:
    """Rows whose columns go together, and are of different size."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(k, k, generator=generator, dtype=torch.float64) / k**0.5
    size = torch.logspace(0, -1, k, dtype=torch.float64)
    return (torch.randn(rows, k, generator=generator, dtype=torch.float64) * size) @ mixing


def weight_and_scale(n: int, k: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(seed))
    return weight, weight.abs().amax(1, keepdim=True) / 127


def gram_of(x: Tensor) -> Tensor:
    return x.double().t() @ x.double()


def by_least_squares(weight: Tensor, scale: Tensor, gram: Tensor) -> Tensor:
    """The same rounding from its definition: for every column of every row, the weights that are still floats are set
    to the minimum of (w - v) H (w - v)^T, where w is the given row and v has its rounded columns fixed.
    """
    k = weight.shape[1]
    hessian = gram + DAMPING * gram.diagonal().mean() * torch.eye(k, dtype=torch.float64)
    order = gram.diagonal().argsort(descending=True, stable=True).tolist()
    codes = torch.zeros(weight.shape, dtype=torch.int8)
    for row, step in enumerate(scale.double().view(-1)):
        given = weight[row].double()
        now = given.clone()
        for place, column in enumerate(order):
            exact = given if column == given.abs().argmax() else now  # the largest keeps its code
            code = torch.round(exact[column] / step).clamp(-127, 127)
            codes[row, column], now[column] = code.to(torch.int8), code * step
            free, fixed = order[place + 1 :], order[: place + 1]
            if free:
                pull = hessian[free][:, fixed] @ (given - now)[fixed]
                now[free] = given[free] + torch.linalg.solve(hessian[free][:, free], pull)
    return codes


@pytest.mark.parametrize("k", [1, 2, 7, 24])
def test_is_least_squares_done_anew_for_every_column(k: int) -> None:
    weight, scale = weight_and_scale(5, k)
    gram = gram_of(inputs(40, k))
    assert torch.equal(round_by_inputs(weight, scale, gram), by_least_squares(weight, scale, gram))


def test_is_least_squares_across_blocks_of_columns() -> None:
    weight, scale = weight_and_scale(1, 131)
    gram = gram_of(inputs(200, 131))
    assert torch.equal(round_by_inputs(weight, scale, gram), by_least_squares(weight, scale, gram))


def test_fewer_rows_than_columns_are_damped() -> None:
    weight, scale = weight_and_scale(3, 16)
    gram = gram_of(inputs(4, 16))
    assert torch.equal(round_by_inputs(weight, scale, gram), by_least_squares(weight, scale, gram))


def test_the_best_of_all_codes_of_two_columns_is_not_missed_by_much() -> None:
    """Of two columns that go together all pairs of codes near the floats are tried, beside a third whose large weight
    gives the scale: none is better than the best, and together they lose far less than the nearest codes.
    """
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x[:, 1] = x[:, 0] + 0.1 * x[:, 1]
    weight = weight_and_scale(200, 3)[0]
    weight[:, 2] = 5
    scale = torch.full((200, 1), 5 / 127)
    gram = gram_of(x)

    def loss(codes: Tensor) -> Tensor:
        return ((weight.double() - codes.double() * scale) @ x.t()).square().sum(1)

    nearest = quantize(weight, scale)
    near = torch.arange(-3, 4)
    steps = torch.cartesian_prod(near, near, torch.zeros(1, dtype=torch.int64))
    best = torch.stack([loss(nearest + step) for step in steps]).amin(0)
    found = loss(round_by_inputs(weight, scale, gram))
    assert bool((found >= best * (1 - 1e-9)).all())
    # The remainder of the first column is made good, so one of two is left: half of the squared error.
    assert found.sum() < 0.6 * loss(nearest).sum()


@pytest.mark.parametrize("seed", range(3))
def test_loses_less_than_nearest_on_other_rows_of_the_kind(seed: int) -> None:
    seen, fresh = inputs(800, 64, seed)[:600], inputs(800, 64, seed)[600:]
    weight, scale = weight_and_scale(48, 64, seed)

    def loss(codes: Tensor) -> float:
        return float(((weight.double() - codes.double() * scale) @ fresh.t()).square().sum())

    assert loss(round_by_inputs(weight, scale, gram_of(seen))) < 0.8 * loss(quantize(weight, scale))


def test_inputs_that_do_not_go_together_give_the_nearest_codes() -> None:
    weight, scale = weight_and_scale(4, 9)
    gram = torch.diag(torch.arange(1, 10, dtype=torch.float64))
    assert torch.equal(round_by_inputs(weight, scale, gram), quantize(weight, scale))


def test_inputs_of_zeros_give_the_nearest_codes() -> None:
    weight, scale = weight_and_scale(4, 9)
    assert torch.equal(round_by_inputs(weight, scale, gram_of(torch.zeros(5, 9))), quantize(weight, scale))


def test_codes_stay_within_range_and_a_row_of_zeros_stays_zero() -> None:
    weight, scale = weight_and_scale(6, 32)
    weight[2], scale[2] = 0, 1
    codes = round_by_inputs(weight, scale, gram_of(inputs(100, 32)))
    assert codes.abs().amax(1).tolist() == [127, 127, 0, 127, 127, 127]
    assert codes.min() >= -127  # and none is above 127, which is int8's largest
    assert not codes[2].any()


def test_what_cannot_be_rounded_by() -> None:
    weight, scale = weight_and_scale(2, 4)
    with pytest.raises(ValueError, match=r"\[3, 3\] for a layer of 4 inputs"):
        round_by_inputs(weight, scale, torch.eye(3, dtype=torch.float64))
