"""Charts as SVG text, without a plotting library: panels of lines over linear or logarithmic axes, and rows of dots.

```python
panel = Panel("time", {"fp32": [(1, 50.0), (10, 450.0)]}, x=Axis("frames", log=True), y=Axis("ms", log=True))
write_svg(Path("time.svg"), [panel], columns=1)
write_rows(Path("errors.svg"), Rows("errors", {"camera head": {"rotation": 0.2, "depth": 0.1}}, Axis("%", log=True)))
```
"""

import errno
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from xml.sax.saxutils import escape

from vggt_int8.disk import check_place
from vggt_int8.files import write_whole

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#666666")  # after Okabe and Ito
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 40, 46  # around the axes, pixels
LEGEND_LINE = 18
ROW = 18  # height of a row of dots
FONT = 'font-family="Helvetica, Arial, sans-serif" font-size="12" fill="#333"'
LETTER = 6.3  # pixels, about the mean width at this font size

Point = tuple[float, float]
Series = dict[str, list[Point]]


@dataclass(frozen=True)
class Axis:
    """label: quantity and unit. ticks: where to write values; None: at round numbers."""

    label: str = ""
    log: bool = False
    ticks: tuple[float, ...] | None = None

    def position(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def ticks_within(self, low: float, high: float) -> list[float]:
        if self.ticks is not None:
            return [tick for tick in self.ticks if low <= tick <= high]
        if not self.log:
            step = _round_step((high - low) / 4)
            return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        return [tick for decade in decades for m in (1, 2, 5) if low <= (tick := m * 10.0**decade) <= high]


@dataclass(frozen=True)
class Panel:
    """One chart. series: points (x, y) by name, ascending in x; markers: a dot at each point."""

    title: str
    series: Series
    x: Axis = Axis()
    y: Axis = Axis()
    markers: bool = False


@dataclass(frozen=True)
class Rows:
    """One chart of a row for each label, a dot of each series in it. rows: label -> series -> x, which on a logarithmic
    axis must be above 0 to be drawn.
    """

    title: str
    rows: Mapping[str, Mapping[str, float]]
    x: Axis = Axis()


def write_svg(path: Path, panels: Sequence[Panel], *, columns: int, size: tuple[int, int] = (440, 270)) -> None:
    """What `draw_svg` draws as a file, which appears when it is complete. Raises OSError as `check_chart`."""
    check_chart(path)
    write_whole(path, draw_svg(panels, columns=columns, size=size) + "\n")


def draw_svg(panels: Sequence[Panel], *, columns: int, size: tuple[int, int] = (440, 270)) -> str:
    """Panels of `size` (width, height) row by row as the text of an SVG picture.

    A name has one colour in all panels. Names are written below the last row once if all panels have the same ones,
    else below each panel.
    """
    names = list(dict.fromkeys(name for panel in panels for name in panel.series))
    shared = all(set(panel.series) == set(names) for panel in panels)
    colors = dict(zip(names, cycle(COLORS), strict=False))
    width, rows = size[0] * columns, -(-len(panels) // columns)
    legends = [_legend(names if shared else list(p.series), colors, width if shared else size[0]) for p in panels]
    extra = max(height for _, height in legends)
    row_height = size[1] + (0 if shared else extra)
    parts = []
    for index, panel in enumerate(panels):
        left, top = index % columns * size[0], index // columns * row_height
        parts.append(f'<g transform="translate({left},{top})">{_panel(panel, colors, size)}</g>')
        if not shared:
            parts.append(f'<g transform="translate({left},{top + size[1]})">{legends[index][0]}</g>')
    height = rows * row_height + (extra if shared else 0)
    if shared:
        parts.append(f'<g transform="translate(0,{rows * row_height})">{legends[0][0]}</g>')
    return _svg(parts, width, height)


def write_rows(path: Path, chart: Rows, *, width: int = 880) -> None:
    """What `draw_rows` draws as a file, as `write_svg`."""
    check_chart(path)
    write_whole(path, draw_rows(chart, width=width) + "\n")


def draw_rows(chart: Rows, *, width: int = 880) -> str:
    """Rows of dots as the text of an SVG picture of that width, as high as they need; labels stand on the left."""
    left = LEFT + round(LETTER * max(map(len, chart.rows), default=0))
    right, bottom = width - RIGHT, TOP + ROW * len(chart.rows)
    names = list(dict.fromkeys(name for row in chart.rows.values() for name in row))
    colors = dict(zip(names, cycle(COLORS), strict=False))
    drawn = {
        label: {name: x for name, x in row.items() if x > 0 or not chart.x.log} for label, row in chart.rows.items()
    }
    parts = [f'<text x="16" y="22" font-size="14" font-weight="bold">{escape(chart.title)}</text>']
    values = [x for row in drawn.values() for x in row.values()]
    low, high = _limits(chart.x, values) if values else (0.0, 1.0)

    def place(x: float) -> float:
        return left + _share(chart.x, x, low, high) * (right - left)

    for tick in chart.x.ticks_within(low, high) if values else ():
        parts.append(f'<path d="M{place(tick):.1f} {TOP}V{bottom}" stroke="#e3e3e3"/>')
        parts.append(f'<text x="{place(tick):.1f}" y="{bottom + 17}" text-anchor="middle">{_number(tick)}</text>')
    for index, (label, row) in enumerate(drawn.items()):
        y = TOP + ROW * (index + 0.5)
        parts.append(f'<text x="{left - 10}" y="{y + 4:.1f}" text-anchor="end">{escape(label)}</text>')
        if row:
            ends = f"M{place(min(row.values())):.1f} {y:.1f}H{place(max(row.values())):.1f}"
            parts.append(f'<path d="{ends}" stroke="#bbb"/>')
        parts += [f'<circle cx="{place(x):.1f}" cy="{y:.1f}" r="4" fill="{colors[name]}"/>' for name, x in row.items()]
    parts.append(f'<path d="M{left} {bottom}H{right}" stroke="#888"/>')
    middle = (left + right) / 2
    parts.append(f'<text x="{middle:.0f}" y="{bottom + 36}" text-anchor="middle">{escape(chart.x.label)}</text>')
    legend, height = _legend(names, colors, width)
    parts.append(f'<g transform="translate(0,{bottom + BOTTOM})">{legend}</g>')
    return _svg(parts, width, bottom + BOTTOM + height)


def check_chart(path: Path) -> None:
    """Raise OSError, naming it, if a chart cannot be written to `path`, or would replace a file that is not our
    chart.
    """
    check_place(path)
    if path.exists():
        with path.open("rb") as file:
            start = file.read(1024)
        if not (start.startswith(b"<svg ") and f"{FONT}>".encode() in start):
            raise FileExistsError(errno.EEXIST, "is there and was not drawn here: choose another name", str(path))


def _svg(parts: Sequence[str], width: int, height: int) -> str:
    area = f'width="{width}" height="{height}"'
    text = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {area} viewBox="0 0 {width} {height}" '
        f'{FONT}>\n<rect {area} fill="white"/>\n'
    )
    return text + "\n".join(parts) + "\n</svg>"


def _panel(panel: Panel, colors: dict[str, str], size: tuple[int, int]) -> str:
    (width, height), points = size, [point for line in panel.series.values() for point in line]
    right, bottom = width - RIGHT, height - BOTTOM
    title = f'<text x="{LEFT}" y="22" font-size="14" font-weight="bold">{escape(panel.title)}</text>'
    if not points:
        return title
    (x_low, x_high), (y_low, y_high) = (
        _limits(panel.x, [x for x, _ in points]),
        _limits(panel.y, [y for _, y in points]),
    )

    def place(x: float, y: float) -> Point:
        return (
            LEFT + _share(panel.x, x, x_low, x_high) * (right - LEFT),
            bottom - _share(panel.y, y, y_low, y_high) * (bottom - TOP),
        )

    parts = [title]
    for tick in panel.y.ticks_within(y_low, y_high):
        y = place(x_low, tick)[1]
        parts.append(f'<path d="M{LEFT} {y:.1f}H{right}" stroke="#e3e3e3"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    for tick in panel.x.ticks_within(x_low, x_high):
        x = place(tick, y_low)[0]
        parts.append(f'<path d="M{x:.1f} {bottom}v4" stroke="#888"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{_number(tick)}</text>')
    parts.append(f'<path d="M{LEFT} {bottom}H{right}" stroke="#888"/>')
    middle = (LEFT + right) / 2
    parts.append(f'<text x="{middle:.0f}" y="{bottom + 36}" text-anchor="middle">{escape(panel.x.label)}</text>')
    turned = f'transform="translate(14,{(TOP + bottom) / 2:.0f}) rotate(-90)" text-anchor="middle"'
    parts.append(f"<text {turned}>{escape(panel.y.label)}</text>")
    for name, line in panel.series.items():
        placed = [place(*point) for point in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colors[name]}" stroke-width="2"/>')
        if panel.markers:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colors[name]}"/>' for x, y in placed]
    return "\n".join(parts)


def _legend(names: list[str], colors: dict[str, str], width: int) -> tuple[str, int]:
    """Names beside a piece of their line, in as many rows as they need, and the height of it all."""
    parts, x, y = [], LEFT, 4
    for name in names:
        needed = 30 + round(LETTER * len(name))
        if x > LEFT and x + needed > width - RIGHT:
            x, y = LEFT, y + LEGEND_LINE
        parts.append(f'<path d="M{x} {y}h18" stroke="{colors[name]}" stroke-width="3"/>')
        parts.append(f'<text x="{x + 24}" y="{y + 4}">{escape(name)}</text>')
        x += needed + 14
    return "\n".join(parts), y + LEGEND_LINE


def _limits(axis: Axis, values: list[float]) -> Point:
    """Ends of the axis: the values' own in x with given ticks, else with some room."""
    low, high = axis.position(min(values)), axis.position(max(values))
    room = 0.04 * (high - low) or 0.5 * (abs(high) or 1.0)
    low, high = low - room, high + room
    return (10**low, 10**high) if axis.log else (low, high)


def _share(axis: Axis, value: float, low: float, high: float) -> float:
    return (axis.position(value) - axis.position(low)) / (axis.position(high) - axis.position(low))


def _round_step(step: float) -> float:
    """The next of 1, 2, 5, 10, … times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= step * 0.999)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
