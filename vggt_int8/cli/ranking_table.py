"""The ranking of `vggt-int8 sensitivity` as a console table."""

from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from vggt_int8.sensitivity.tables import Row


def ranking_table(rows: "list[list[Row]]", by: str, most: int) -> Table:
    """The first `most` units, one line for each measured option. `by`: the kind of units."""
    from vggt_int8.sensitivity.measures import MEASURES
    from vggt_int8.sensitivity.tables import kinds

    found = kinds(rows)
    titles = [f"{MEASURES[kind].title}, {MEASURES[kind].unit}" for kind in found]
    table = Table(by, "layers", "becomes", "MB", *titles, "largest", box=None, pad_edge=False)
    for column in (1, *range(3, len(table.columns))):
        table.columns[column].justify = "right"
    for of_unit in rows[:most]:
        for number, row in enumerate(row for row in of_unit if row.errors):
            first = ("", "") if number else (row.unit.name, str(len(row.unit.layers)))
            numbers = [f"{row.errors[kind]:.3g}" if kind in row.errors else "" for kind in found]
            table.add_row(*first, row.option.label, f"{row.option.bytes / 1e6:,.2f}", *numbers, f"{row.error:.3g}")
    return table
