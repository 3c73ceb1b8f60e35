"""Apply a budget: the option chosen for every unit, as a recipe, with its predicted size and error."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from vggt_int8.recipe import Recipe
from vggt_int8.sensitivity import measures
from vggt_int8.sensitivity.budget import BudgetError, bytes_of, within_error, within_size
from vggt_int8.sensitivity.measures import Errors, largest, together
from vggt_int8.sensitivity.recipe_file import chosen_recipe
from vggt_int8.sensitivity.tables import Row, candidates
from vggt_int8.sensitivity.units import BASE, KEEP, Unit, other_bytes


@dataclass(frozen=True)
class Budget:
    """Exactly one of: the largest error (degrees or per cent), or the bytes of the checkpoint's tensors."""

    error: float | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        if (self.error is None) == (self.size is None):
            raise ValueError(f"a budget is an error or a size, got {self.error} and {self.size}")


@dataclass(frozen=True)
class Outcome:
    chosen: dict[str, str]  # unit -> choice
    recipe: Recipe
    errors: Errors  # predicted
    bytes: int  # of the checkpoint's tensors, predicted


def decide(
    model: nn.Module,
    base: Recipe,
    units: Sequence[Unit],
    rows: Sequence[Sequence[Row]],
    stored: Errors,
    budget: Budget,
    *,
    by: str,
    name: str,
) -> Outcome:
    """rows: see `tables.ranking`. stored: errors of storing floats in fp16, which every recipe has. by: the kind of
    units.

    Raises `budget.BudgetError` with the smallest possible value.
    """
    table, others = candidates(rows), other_bytes(model, units)
    if budget.error is not None:
        found = within_error(table, budget.error, stored)
    else:
        assert budget.size is not None
        found = within_size(table, budget.size, others)
    chosen = {unit.name: found[unit.name].choice for unit in units}
    wish = f"an error of {budget.error:g}" if budget.error is not None else f"{(budget.size or 0) / 1e6:g} MB"
    if set(chosen.values()) == {KEEP}:
        floats = f"{bytes_of(found, others) / 1e6:.4g} MB"
        raise BudgetError(f"{wish} leaves nothing to quantize: recipe fp16 is what fits, in {floats}; or ask for less")
    more_exact = sum(choice != BASE for choice in chosen.values())
    about = f"As {base.name}, with {more_exact} of {len(units)} {by}s more exact, for {wish}."
    recipe = chosen_recipe(model, base, units, chosen, by=by, name=name, about=about)
    errors = together([stored, *(candidate.errors for candidate in found.values())])
    return Outcome(chosen, recipe, errors, bytes_of(found, others))


def in_words(errors: Errors, size: int) -> str:
    """ "12.3 MB, error 0.21 (rotation 0.02°, depth 0.21%)"."""
    return f"{size / 1e6:,.2f} MB, error {largest(errors):.3g} ({measures.in_words(errors)})"
