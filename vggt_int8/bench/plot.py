"""The figure beside the table: time per frame and peak memory against the number of frames."""

from collections.abc import Sequence
from pathlib import Path

from vggt_int8.bench.records import Row, device_name
from vggt_int8.bench.table import COMPILED, OURS, REFERENCES, Rows, newest
from vggt_int8.chart import Axis, Panel, Series, write_svg

ALSO = ("int8_dynamic:bitsandbytes", "torchao-compiled", "fp16:native")


def write_plot(rows: Sequence[Row], output: Path) -> None:
    """Write one SVG of the main variants. Raises ValueError as `newest`, or if no row has a time."""
    table = newest(rows)
    lines = _lines(table)
    if not lines:
        raise ValueError("no row has a time, so there is nothing to draw")
    ticks = tuple(sorted({float(frames) for _, frames in table}))
    x = Axis("frames", log=True, ticks=ticks)
    device = device_name(next(iter(table.values())))
    time: Series = {
        title: [(row["frames"], row["ms"] / row["frames"]) for row in line] for title, line in lines.items()
    }
    panels = [Panel(f"Time per frame, {device}", time, x, Axis("ms per frame", log=True), markers=True)]
    memory: Series = {
        title: [(row["frames"], row["peak_gib"]) for row in line if row["peak_gib"] is not None]
        for title, line in lines.items()
    }
    if any(memory.values()):
        panels.append(Panel("Peak GPU memory with weights", memory, x, Axis("GiB", log=True), markers=True))
    write_svg(output, panels, columns=len(panels))


def _lines(table: Rows) -> dict[str, list[Row]]:
    """Title -> rows by frames: ours, one reference, the fastest compiled bf16, and some others if measured."""
    reference = next((name for name in REFERENCES if any(name == v for v, _ in table)), "")
    groups: dict[str, tuple[str, ...]] = {OURS: (OURS,), reference: (reference,), "bf16 compiled": COMPILED}
    groups |= {name: (name,) for name in ALSO}
    lines: dict[str, list[Row]] = {}
    for name, members in groups.items():
        found = [row for (variant, _), row in table.items() if variant in members and row["status"] == "ok"]
        fastest = {row["frames"]: row for row in sorted(found, key=lambda row: -row["ms"])}
        if fastest:
            title = name if len(members) > 1 else found[0]["title"]
            lines[title] = [fastest[frames] for frames in sorted(fastest)]
    return lines
