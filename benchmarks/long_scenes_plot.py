"""The figure of docs/long_scenes.md: accuracy and time over the number of frames, from rows that were measured.

    python -m benchmarks.long_scenes_plot -o docs/long_scenes.svg

Accuracy from rows of `keyframe_accuracy.py`, ordered and unordered scenes apart; where files measured the same views,
the last one's; time from rows of `long_scenes.py` without a limit of memory, the fastest of each.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vggt_int8.chart import Axis, Panel, Series, write_svg

RESULTS = Path(__file__).parent / "results"
ACCURACY = (RESULTS / "cpu" / "keyframe_accuracy.jsonl", RESULTS / "h200" / "keyframe_accuracy.jsonl")
TIME = (RESULTS / "h200" / "long_scenes.jsonl",)
NAMES = {  # word and how many numbers follow it
    ("exact", 0): "exact",
    ("frames", 0): "inside frames",
    ("keyframes", 1): "K = {}",
    ("auto", 1): "auto, K = {}",
    ("early", 1): "first {} inside frames",
    ("early", 2): "first {} inside frames, K = {}",
    ("windows", 2): "windows {}/{}",
}


def title_of(way: str) -> str:
    name, *numbers = way.split(":")
    return NAMES[name, len(numbers)].format(*numbers)


def rows_of(files: Iterable[Path]) -> list[dict[str, Any]]:
    return [json.loads(line) for path in files for line in path.read_text().splitlines()]


def series_of(rows: Iterable[dict[str, Any]], x: str, y: str) -> Series:
    """Lines by way, exact attention first; of rows at the same place the last one's."""
    found: dict[str, dict[float, float]] = {}
    for row in rows:
        found.setdefault(row["way"], {})[row[x]] = row[y]
    ways = sorted(found, key=_place)
    return {title_of(way): sorted(found[way].items()) for way in ways}


def _place(way: str) -> tuple[bool, list[int | str]]:
    return way != "exact", [int(part) if part.isdecimal() else part for part in way.split(":")]


def panels(accuracy: Sequence[dict[str, Any]], time: Sequence[dict[str, Any]]) -> list[Panel]:
    made = []
    views = tuple(sorted({float(row["views"]) for row in accuracy}))
    for kind in ("ordered", "unordered"):
        lines = series_of((row for row in accuracy if row["kind"] == kind and row["scenes"]), "views", "auc_5")
        x = Axis("frames", log=True, ticks=views)
        made.append(Panel(f"AUC@5, {kind} scenes, small model", lines, x, Axis("%"), markers=True))
    free = sorted((row for row in time if row["cap_gb"] is None), key=lambda row: -row["ms"])
    x = Axis("frames", log=True, ticks=tuple(sorted({float(row["frames"]) for row in free})))
    lines = series_of(free, "frames", "ms")
    return [*made, Panel("Time, VGGT-1B's shapes, one H200", lines, x, Axis("ms", log=True), markers=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--accuracy", type=Path, nargs="+", default=ACCURACY)
    parser.add_argument("--time", type=Path, nargs="+", default=TIME)
    arguments = parser.parse_args()
    made = panels(rows_of(arguments.accuracy), rows_of(arguments.time))
    write_svg(arguments.out, made, columns=len(made))


if __name__ == "__main__":
    main()
