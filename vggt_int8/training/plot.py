"""Draws a run's log as an SVG file: losses and held-out scores over the steps. Plain text, no plotting library."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

WIDTH, HEIGHT, MARGIN = 420, 240, 44
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")

Series = dict[str, list[tuple[float, float]]]

PANELS = {
    "training loss": ("train", ("total",)),
    "camera, depth and point loss": ("train", ("camera", "depth", "point")),
    "held-out pose AUC, %": ("validation", ("auc_30", "auc_5")),
    "held-out depth AbsRel": ("validation", ("abs_rel",)),
}


def write_curves(logs: Sequence[Path], output: Path) -> None:
    """Read `log.jsonl` files of one run, in order, and write one SVG with four panels.

    Where runs were resumed from before their end, the later entry of a step wins. Raises ValueError if nothing was
    logged.
    """
    entries = [json.loads(line) for log in logs for line in log.read_text(encoding="utf-8").splitlines() if line]
    panels = {title: _series(entries, kind, names) for title, (kind, names) in PANELS.items()}
    if not any(panels.values()):
        raise ValueError(f"{', '.join(map(str, logs))}: no training step was logged")
    drawn = [_panel(title, series, i % 2 * WIDTH, i // 2 * HEIGHT) for i, (title, series) in enumerate(panels.items())]
    size = f'width="{2 * WIDTH}" height="{2 * HEIGHT}"'
    text = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">\n'
    text += f'<rect {size} fill="white"/>\n' + "\n".join(drawn) + "\n</svg>\n"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")


def _series(entries: list[dict[str, Any]], kind: str, names: Sequence[str]) -> Series:
    found: dict[str, dict[float, float]] = {}
    for entry in entries:
        if entry["kind"] != kind:
            continue
        groups = {"": entry} if kind == "train" else {k: v for k, v in entry.items() if k.endswith("views")}
        for group, values in groups.items():
            for name in names:
                if name in values:
                    found.setdefault(f"{name} {group}".strip(), {})[entry["step"]] = values[name]
    return {name: sorted(points.items()) for name, points in found.items()}


def _panel(title: str, series: Series, left: float, top: float) -> str:
    points = [point for line in series.values() for point in line]
    parts = [f'<g transform="translate({left},{top})">', f'<text x="{MARGIN}" y="18">{escape(title)}</text>']
    if points:
        low, high = min(y for _, y in points), max(y for _, y in points)
        end, span = max(x for x, _ in points) or 1, (high - low) or 1
        inner_width, inner_height = WIDTH - MARGIN - 12, HEIGHT - 28 - 30

        def place(x: float, y: float) -> tuple[float, float]:
            return MARGIN + x / end * inner_width, 28 + (high - y) / span * inner_height

        for value in (low, (low + high) / 2, high):
            y = place(0, value)[1]
            parts.append(f'<path d="M{MARGIN} {y:.1f}H{WIDTH - 12}" stroke="#ddd"/>')
            parts.append(f'<text x="{MARGIN - 4}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
        parts.append(f'<text x="{WIDTH - 12}" y="{HEIGHT - 14}" text-anchor="end">step {end:g}</text>')
        for color, line in zip(COLORS * 2, series.values(), strict=False):
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in line))
            parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        for index, name in enumerate(series):
            color = COLORS[index % len(COLORS)]
            x = MARGIN + 4 + index * (WIDTH - MARGIN) / max(len(series), 2)
            parts.append(f'<text x="{x:.0f}" y="{HEIGHT - 2}" fill="{color}">{escape(name)}</text>')
    return "\n".join([*parts, "</g>"])
