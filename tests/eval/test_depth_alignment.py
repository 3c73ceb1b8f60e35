"""Errors of depth under each alignment, worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from vggt_int8.eval.metrics import align_depth, depth_errors


def one_scene(*values: float) -> Tensor:
    return torch.tensor(values).view(1, 1, 1, -1)


def errors(predicted: Tensor, truth: Tensor, alignment: str) -> tuple[float, float, float]:
    found = depth_errors(predicted, truth, torch.ones_like(truth, dtype=torch.bool), alignment)
    return found.abs_rel.item(), found.rmse.item(), found.delta_125.item()


def test_by_hand() -> None:
    truth, predicted = one_scene(1, 2, 4), one_scene(1, 1, 2)
    # As it is: off by 0, 1/2, 1/2; squares 0, 1, 4.
    assert errors(predicted, truth, "none") == pytest.approx((1 / 3, math.sqrt(5 / 3), 100 / 3))
    # Truth over prediction is 1, 2, 2: doubled it is 2, 2, 4.
    assert errors(predicted, truth, "scale") == pytest.approx((1 / 3, math.sqrt(1 / 3), 200 / 3))
    # Around the means 4/3 and 7/3: products sum up to 5/3, squares to 2/3, so a = 2.5, and the fit is 1.5, 1.5, 4.
    assert errors(predicted, truth, "scale_shift") == pytest.approx(((0.5 + 0.25) / 3, math.sqrt(0.5 / 3), 100 / 3))


def test_each_alignment_forgives_what_it_says() -> None:
    truth = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)) + 1
    for predicted, forgiving in (
        (truth, {"none", "scale", "scale_shift"}),
        (3 * truth, {"scale", "scale_shift"}),
        (3 * truth + 2, {"scale_shift"}),
    ):
        for alignment in ("none", "scale", "scale_shift"):
            assert (max(errors(predicted[:1], truth[:1], alignment)[:2]) < 1e-5) == (alignment in forgiving)


def test_least_squares_is_that_of_a_solver() -> None:
    generator = torch.Generator().manual_seed(1)
    predicted, truth = torch.rand(50, generator=generator), torch.rand(50, generator=generator)
    a, b = torch.linalg.lstsq(torch.stack([predicted, torch.ones(50)], dim=1).double(), truth.double()).solution
    torch.testing.assert_close(align_depth(predicted, truth, "scale_shift"), (a * predicted.double() + b).float())


def test_a_shift_below_zero_is_within_no_factor() -> None:
    """Least squares may give a depth behind the camera: -1 is not "within 1.25" of 1."""
    truth = one_scene(0.1, 10, 10, 10)
    predicted = one_scene(-0.1, 10, 10, 10)
    assert errors(predicted, truth, "none")[2] == pytest.approx(75)


def test_a_constant_prediction_becomes_the_mean() -> None:
    for value in (1.0, 0.1):  # the mean of tenths is no tenth
        fitted = align_depth(torch.full((3,), value), torch.tensor([1.0, 2, 6]), "scale_shift")
        assert fitted.tolist() == [3, 3, 3]


def test_an_unknown_alignment_is_named() -> None:
    with pytest.raises(ValueError, match="'shift'; choose one of none, scale, scale_shift"):
        errors(one_scene(1), one_scene(1), "shift")
