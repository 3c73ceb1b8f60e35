"""Choices keep to their budget, waste nothing, and say the least that can be where none does."""

import itertools
import math
import random

import pytest

from vggt_int8.sensitivity.budget import BudgetError, Candidate, bytes_of, predicted, within_error, within_size
from vggt_int8.sensitivity.measures import together

KINDS = ("rotation", "depth")


def table(seed: int, units: int = 6) -> dict[str, list[Candidate]]:
    """Units that become more exact and more costly; some gain nothing by the middle choice."""
    draw = random.Random(seed)
    found = {}
    for index in range(units):
        size = draw.randint(5, 50)
        worst = {kind: draw.uniform(0.01, 0.4) for kind in KINDS}
        middle = {kind: value * draw.uniform(0.2, 1.2) for kind, value in worst.items()}
        found[f"unit {index}"] = [
            Candidate("base", size, size, worst),
            Candidate("weight_only", size, 2 * size, middle),
            Candidate("keep", 2 * size, 3 * size, {}),
        ]
    return found


def every_choice(of: dict[str, list[Candidate]]) -> list[dict[str, Candidate]]:
    return [dict(zip(of, chosen, strict=True)) for chosen in itertools.product(*of.values())]


def squares(chosen: dict[str, Candidate]) -> float:
    return sum(value**2 for value in together(c.errors for c in chosen.values()).values())


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("limit", [0.1, 0.3, 0.5])
def test_an_error_is_kept_to_nearly_as_cheaply_as_can_be(seed: int, limit: float) -> None:
    of, always = table(seed), {"depth": 0.05}
    chosen = within_error(of, limit, always)
    assert predicted(chosen, always) <= limit
    cost = sum(candidate.cost for candidate in chosen.values())
    least = min(
        sum(candidate.cost for candidate in choice.values())
        for choice in every_choice(of)
        if predicted(choice, always) <= limit
    )
    assert least <= cost <= 1.25 * least
    for unit, candidate in chosen.items():
        for cheaper in of[unit]:
            if cheaper.cost < candidate.cost:
                assert predicted({**chosen, unit: cheaper}, always) > limit, "it is more exact than it need be"


@pytest.mark.parametrize("seed", range(8))
def test_a_size_is_used_nearly_as_well_as_can_be(seed: int) -> None:
    of = table(seed)
    smallest = sum(candidates[0].bytes for candidates in of.values())
    limit = 1000 + int(1.3 * smallest)
    chosen = within_size(of, limit, 1000)
    assert bytes_of(chosen, 1000) <= limit
    assert bytes_of(chosen, 1000) == 1000 + sum(candidate.bytes for candidate in chosen.values())
    best = min(squares(choice) for choice in every_choice(of) if bytes_of(choice, 1000) <= limit)
    # Bytes that are left over are fewer than any step that would help needs; so much may be lost.
    assert best <= squares(chosen) <= 1.6 * best + 1e-12


def test_what_costs_nothing_is_taken() -> None:
    of = {"unit": [Candidate("base", 10, 10, {"depth": 0.4}), Candidate("weight_only", 10, 20, {"depth": 0.1})]}
    assert within_size(of, 10, 0)["unit"].choice == "weight_only"
    assert within_error(of, 0.5, {})["unit"].choice == "base", "fast enough, and exact enough"


def test_a_budget_that_cannot_be_met_says_the_least() -> None:
    of = {
        "a": [Candidate("base", 3_000_000, 3, {"depth": 0.3}), Candidate("weight_only", 3_000_000, 6, {"depth": 0.03})],
        "b": [Candidate("base", 1_000_000, 1, {"depth": 0.04})],
    }
    with pytest.raises(BudgetError, match=r"--error 0.01 cannot be met: the least that is predicted is 0.05$"):
        within_error(of, 0.01, {})
    with pytest.raises(BudgetError, match=r"--size-mb 3.5 cannot be met: the least is 4.25 MB$"):
        within_size(of, 3_500_000, 250_000)
    assert within_error(of, 0.05, {})["a"].choice == "weight_only"
    assert math.isclose(predicted(within_error(of, 0.06, {"depth": 0.01}), {"depth": 0.01}), math.hypot(0.05, 0.01))


def test_errors_of_every_choice_count() -> None:
    of = {"a": [Candidate("base", 1, 1, {"depth": 0.1}), Candidate("keep", 2, 3, {})]}
    assert within_error(of, 0.1, {})["a"].choice == "base"
    assert within_error(of, 0.1, {"depth": 0.01})["a"].choice == "keep"
    with pytest.raises(BudgetError):
        within_error(of, 0.1, {"tracks": 0.2})
