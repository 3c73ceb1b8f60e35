"""Choose an option for every unit: the cheapest within an error limit, or the most accurate within a size limit.

Each unit starts with the option of the base recipe, which is the smallest and fastest. Greedy search then upgrades the
unit where the error decreases most for its cost. Errors are predicted as described in `measures.together`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vggt_int8.sensitivity.measures import Errors, largest, together


@dataclass(frozen=True)
class Candidate:
    """One option of a unit (see `units.Option`) with the errors measured for it alone."""

    choice: str
    bytes: int
    cost: int
    errors: Errors


Table = Mapping[str, Sequence[Candidate]]  # unit -> what it may become, from the base's on
Chosen = dict[str, Candidate]
Squares = Mapping[str, float]  # kind of error -> its square


# Steps are ranked by gain / price ** power. Which power gives the cheapest result differs between tables, so several
# are tried.
POWERS = (0.0, 0.5, 1.0, 2.0)


class BudgetError(ValueError):
    """No choice meets the budget. The message states the smallest value that is possible."""


def within_error(table: Table, limit: float, always: Errors) -> Chosen:
    """A nearly cheapest choice among those whose largest predicted error is at most `limit` (degrees or per cent).
    always: errors that every choice has. Raises `BudgetError`.
    """
    least = {unit: min(candidates, key=lambda c: largest(c.errors)) for unit, candidates in table.items()}
    if (reached := predicted(least, always)) > limit:
        raise BudgetError(f"--error {limit:g} cannot be met: the least that is predicted is {reached:.4g}")

    found = [_upgraded(table, limit, always, least, power) for power in POWERS]
    return min(found, key=lambda chosen: sum(candidate.cost for candidate in chosen.values()))


def _upgraded(table: Table, limit: float, always: Errors, least: Chosen, power: float) -> Chosen:
    """Upgrade unit after unit until the error is within `limit`, then make units cheaper again as far as the limit
    allows.
    """

    def excess(squares: Squares) -> float:
        return sum(max(0.0, value - limit**2) for value in squares.values())

    def cost(old: Candidate, new: Candidate) -> float:
        return (new.cost - old.cost) ** power

    chosen = {unit: candidates[0] for unit, candidates in table.items()}
    while predicted(chosen, always) > limit:
        step = _best_step(table, chosen, _squares(chosen, always), excess, cost)
        chosen = least if step is None else {**chosen, step[0]: step[1]}  # what no single step mends, all do
    for unit in sorted(chosen, key=lambda unit: table[unit][0].cost - chosen[unit].cost):  # what costs most, first
        for cheaper in table[unit]:
            if cheaper.cost < chosen[unit].cost and predicted({**chosen, unit: cheaper}, always) <= limit:
                chosen = {**chosen, unit: cheaper}
                break
    return chosen


def within_size(table: Table, limit: int, others: int) -> Chosen:
    """The choice with nearly the smallest predicted error among those of at most `limit` bytes. others: bytes of
    everything that is not chosen. Raises `BudgetError`.
    """
    chosen = {unit: min(candidates, key=lambda c: c.bytes) for unit, candidates in table.items()}
    if (least := bytes_of(chosen, others)) > limit:
        raise BudgetError(f"--size-mb {limit / 1e6:g} cannot be met: the least is {least / 1e6:.4g} MB")

    def growth(old: Candidate, new: Candidate) -> int:
        return new.bytes - old.bytes

    def total(squares: Squares) -> float:
        return sum(squares.values())

    while True:
        room = limit - bytes_of(chosen, others)
        step = _best_step(table, chosen, _squares(chosen, {}), total, growth, room)
        if step is None:
            return chosen
        chosen = {**chosen, step[0]: step[1]}


def bytes_of(chosen: Chosen, others: int) -> int:
    return others + sum(candidate.bytes for candidate in chosen.values())


def predicted(chosen: Chosen, always: Errors) -> float:
    """The largest predicted error of the choice."""
    return largest(together([always, *(candidate.errors for candidate in chosen.values())]))


def _squares(chosen: Chosen, always: Errors) -> Squares:
    return {kind: value**2 for kind, value in together([always, *(c.errors for c in chosen.values())]).items()}


def _best_step(
    table: Table,
    chosen: Chosen,
    squares: Squares,
    badness: Callable[[Squares], float],
    price: Callable[[Candidate, Candidate], float],
    room: float = math.inf,
) -> tuple[str, Candidate] | None:
    """The best single upgrade: the one that removes the most error for its price, with a price of at most `room`. None
    if there is none. squares: squared errors of `chosen` for each kind.
    """
    best, rate = None, 0.0
    for unit, candidates in table.items():
        old = chosen[unit]
        for new in candidates[candidates.index(old) + 1 :]:
            moved = {kind: value - old.errors.get(kind, 0.0) ** 2 for kind, value in squares.items()}
            moved |= {kind: moved.get(kind, 0.0) + value**2 for kind, value in new.errors.items()}
            found = (badness(squares) - badness(moved)) / max(price(old, new), 1)
            if found > rate and price(old, new) <= room:
                best, rate = (unit, new), found
    return best
