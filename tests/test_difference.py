"""Measures of how far two tensors are apart, worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from vggt_int8.difference import Difference, relative_error

MEASURES = ("relative", "relative_max", "max_abs", "mean_abs", "cosine", "sqnr_db")


def measures(got: Tensor, want: Tensor) -> dict[str, float]:
    found = Difference().add(got, want)
    return {name: getattr(found, name) for name in MEASURES}


def test_measures_by_hand() -> None:
    want, got = torch.tensor([3.0, -4.0]), torch.tensor([3.0, -3.0])
    expected = {
        "relative": 0.2,
        "relative_max": 0.25,
        "max_abs": 1,
        "mean_abs": 0.5,
        "cosine": 21 / (5 * math.sqrt(18)),
        "sqnr_db": 10 * math.log10(25),
    }
    assert measures(got, want) == pytest.approx(expected)
    assert relative_error(got, want) == pytest.approx(0.2)
    assert relative_error(want, got) == pytest.approx(1 / math.sqrt(18)), "what is wanted is the second"


def test_a_factor_of_two_is_seen() -> None:
    """Cosine alone would call it perfect."""
    x = torch.randn(100, generator=torch.Generator().manual_seed(0))
    got = measures(2 * x, x)
    assert got["cosine"] == pytest.approx(1)
    assert got["relative"] == pytest.approx(1)
    assert got["sqnr_db"] == pytest.approx(0, abs=1e-9)


def test_zeros() -> None:
    zero, one, inf = torch.zeros(3), torch.ones(3), math.inf
    same = {"relative": 0, "relative_max": 0, "max_abs": 0, "mean_abs": 0, "cosine": 1, "sqnr_db": inf}
    assert measures(zero, zero) == same == measures(one[:0], one[:0])
    lost = {"relative": inf, "relative_max": inf, "max_abs": 1, "mean_abs": 1, "cosine": 0, "sqnr_db": -inf}
    assert measures(one, zero) == lost


def test_large_values_do_not_overflow() -> None:
    x = torch.full((1000,), 1e30)
    assert measures(-x, x)["cosine"] == pytest.approx(-1)


@pytest.mark.parametrize("index", [0, -1])
def test_nan_shows_wherever_it_stands(monkeypatch: pytest.MonkeyPatch, index: int) -> None:
    monkeypatch.setattr("vggt_int8.difference._PIECE", 4)
    want = torch.ones(10)
    got = want.clone()
    got[index] = math.nan
    assert all(math.isnan(value) for value in measures(got, want).values())


def test_an_infinite_result_is_infinitely_wrong() -> None:
    got = measures(torch.tensor([1.0, math.inf]), torch.ones(2))
    assert got["relative"] == got["max_abs"] == math.inf == -got["sqnr_db"]


def test_pieces_and_calls_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    want, error = (torch.randn(7, 11, generator=generator, dtype=torch.float64) for _ in range(2))
    got = want + 0.1 * error
    whole = measures(got.mT, want.mT)
    monkeypatch.setattr("vggt_int8.difference._PIECE", 5)
    assert measures(got, want) == pytest.approx(whole)
    parts = Difference()
    for rows in (slice(0, 3), slice(3, 7)):
        parts.add(got[rows], want[rows])
    assert {name: getattr(parts, name) for name in MEASURES} == pytest.approx(whole)


def test_types_differ_and_shapes_may_not() -> None:
    want = torch.arange(4)
    assert relative_error(want.to(torch.bfloat16).requires_grad_(), want) == 0
    with pytest.raises(ValueError, match=r"\[4\] is compared with \[2, 2\]"):
        relative_error(want, want.view(2, 2))
