"""Draws a run's log as an SVG file: losses and held-out scores over the steps."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vggt_int8.chart import Axis, Panel, Series, write_svg
from vggt_int8.training.log import read_log

PANELS = {
    "training loss": ("train", ("total",)),
    "camera, depth and point loss": ("train", ("camera", "depth", "point")),
    "held-out pose AUC, %": ("validation", ("auc_30", "auc_5")),
    "held-out depth AbsRel": ("validation", ("abs_rel",)),
    "held-out views with fx / fy within 5%, %": ("validation", ("focal_ratio_105",)),
}


def write_curves(logs: Sequence[Path], output: Path) -> None:
    """Read `log.jsonl` files of one run, in order, and write one SVG with four panels.

    Where runs were resumed from before their end, the later entry of a step wins. Raises ValueError if nothing was
    logged, or for a line that is no entry. Numbers that were not finite are left out.
    """
    entries = [entry for log in logs for entry in read_log(log)]
    series = {title: _series(entries, kind, names) for title, (kind, names) in PANELS.items()}
    if not any(series.values()):
        raise ValueError(f"{', '.join(map(str, logs))}: no training step was logged")
    write_svg(output, [Panel(title, lines, x=Axis("step")) for title, lines in series.items()], columns=2)


def _series(entries: list[dict[str, Any]], kind: str, names: Sequence[str]) -> Series:
    found: dict[str, dict[float, float]] = {}
    for entry in entries:
        if entry["kind"] != kind:
            continue
        groups = {"": entry} if kind == "train" else _groups(entry, of_every_shape="focal_ratio_105" in names)
        for group, values in groups.items():
            for name in names:
                if isinstance(values.get(name), int | float):  # null is what was no number
                    found.setdefault(f"{name} {group}".strip(), {})[entry["step"]] = values[name]
    return {name: sorted(points.items()) for name, points in found.items()}


def _groups(entry: dict[str, Any], of_every_shape: bool) -> dict[str, Any]:
    """Rows of a validation: those of square frames, or those of every shape with the largest number of views (all
    together would be too many lines)."""
    rows = {name: row for name, row in entry.items() if re.match(r"\d+ views", name) and isinstance(row, dict)}
    if not of_every_shape:
        return {name: row for name, row in rows.items() if name.endswith(" views")}
    most = max((int(name.split()[0]) for name in rows), default=0)
    return {name: row for name, row in rows.items() if name.startswith(f"{most} views")}
