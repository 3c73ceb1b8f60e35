"""The ranking for display: its rows, their order, and the chart."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vggt_int8.chart import Axis, Rows
from vggt_int8.sensitivity.budget import Candidate
from vggt_int8.sensitivity.measures import MEASURES, Errors, largest, over_scenes
from vggt_int8.sensitivity.record import Record
from vggt_int8.sensitivity.units import KEEP, Option, Unit

MOST_DRAWN = 40


@dataclass(frozen=True)
class Row:
    """A unit with one option; errors: over all scenes; of_scenes: for each scene. Both are None where the unit
    is kept.
    """

    unit: Unit
    option: Option
    errors: Errors
    of_scenes: list[Errors]

    @property
    def error(self) -> float:
        return largest(self.errors)


def ranking(units: Iterable[Unit], record: Record, scenes: int) -> list[list[Row]]:
    """One row for each option of each unit. The unit whose first option has the largest error comes first."""
    found = []
    for unit in units:
        rows = []
        for option in unit.options:
            each = [] if option.choice == KEEP else record.errors(unit.name, option.choice, scenes)
            rows.append(Row(unit, option, over_scenes(each), each))
        found.append(rows)
    return sorted(found, key=lambda rows: -rows[0].error)


def candidates(rows: Sequence[Sequence[Row]]) -> dict[str, list[Candidate]]:
    """The rows as candidates for `budget`."""
    return {
        of_unit[0].unit.name: [
            Candidate(row.option.choice, row.option.bytes, row.option.cost, row.errors) for row in of_unit
        ]
        for of_unit in rows
    }


def kinds(rows: Iterable[Sequence[Row]]) -> list[str]:
    """The keys of `MEASURES` that were measured."""
    found = {kind for of_unit in rows for row in of_unit for kind in row.errors}
    return [kind for kind in MEASURES if kind in found]


def silent(rows: Iterable[Sequence[Row]]) -> list[str]:
    """Units of which some option other than "keep" does not change any output of these scenes."""
    return [
        of_unit[0].unit.name for of_unit in rows if any(not row.error for row in of_unit if row.option.choice != KEEP)
    ]


def chart(rows: Sequence[Sequence[Row]], title: str) -> Rows:
    """Plot the units with the largest errors under the base recipe."""
    drawn = {
        of_unit[0].unit.name: {
            f"{MEASURES[kind].title}, {MEASURES[kind].unit}": value for kind, value in of_unit[0].errors.items()
        }
        for of_unit in rows[:MOST_DRAWN]
    }
    if len(rows) > MOST_DRAWN:
        title += f" (the {MOST_DRAWN} most sensitive of {len(rows)})"
    return Rows(title, drawn, Axis("difference from floating point, degrees and per cent", log=True))
