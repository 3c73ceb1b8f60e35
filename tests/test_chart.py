"""Charts: points where they belong, round ticks, names with one colour each, whole files only."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from vggt_int8.chart import Axis, Panel, Rows, draw_rows, write_rows, write_svg

SVG = "{http://www.w3.org/2000/svg}"


def drawn(tmp_path: Path, *panels: Panel, columns: int = 1) -> ET.Element:
    write_svg(tmp_path / "chart.svg", panels, columns=columns)
    assert [path.name for path in tmp_path.iterdir()] == ["chart.svg"]
    return ET.parse(tmp_path / "chart.svg").getroot()


def points_of(root: ET.Element) -> list[list[tuple[float, float]]]:
    lines = [line.attrib["points"].split() for line in root.iter(f"{SVG}polyline")]
    return [[tuple(map(float, point.split(","))) for point in line] for line in lines]


def test_logarithmic_axes_space_powers_evenly(tmp_path: Path) -> None:
    axis = Axis(log=True)
    root = drawn(tmp_path, Panel("", {"a": [(1, 1), (10, 10), (100, 100)]}, axis, axis))
    ((x0, y0), (x1, y1), (x2, y2)) = points_of(root)[0]
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert y0 > y2  # up is down in SVG


def test_linear_axes_space_steps_evenly(tmp_path: Path) -> None:
    ((x0, y0), (x1, y1), (x2, y2)) = points_of(drawn(tmp_path, Panel("", {"a": [(0, 5), (1, 6), (2, 7)]})))[0]
    assert (x1 - x0, y0 - y1) == pytest.approx((x2 - x1, y1 - y2), abs=0.2)


@pytest.mark.parametrize(
    ("axis", "low", "high", "ticks"),
    [
        (Axis(), 0.0, 1.0, [0.0, 0.5, 1.0]),
        (Axis(), -3.0, 37.0, [0, 10, 20, 30]),
        (Axis(log=True), 7.0, 130.0, [10, 20, 50, 100]),
        (Axis(ticks=(1, 4, 200)), 0.9, 100.0, [1, 4]),
    ],
)
def test_ticks_are_round(axis: Axis, low: float, high: float, ticks: list[float]) -> None:
    assert axis.ticks_within(low, high) == pytest.approx(ticks)


def test_a_name_has_one_colour_and_is_written_once(tmp_path: Path) -> None:
    lines = {"a < b": [(1.0, 2.0)], "c": [(1.0, 3.0)]}
    root = drawn(tmp_path, Panel("left", lines), Panel("right", dict(reversed(lines.items()))), columns=2)
    assert [text.text for text in root.iter(f"{SVG}text")].count("a < b") == 1
    strokes = [line.attrib["stroke"] for line in root.iter(f"{SVG}polyline")]
    assert strokes == [strokes[0], strokes[1], strokes[1], strokes[0]]
    assert strokes[0] != strokes[1]


def test_an_empty_panel_has_its_title_alone(tmp_path: Path) -> None:
    root = drawn(tmp_path, Panel("nothing yet", {}), Panel("one", {"a": [(0, 0), (5, 0)]}))
    assert "nothing yet" in [text.text for text in root.iter(f"{SVG}text")]
    assert len(points_of(root)) == 1


@pytest.mark.parametrize("content", ["mine", "<svg xmlns='http://www.w3.org/2000/svg'>mine</svg>", ""])
def test_a_file_that_was_not_drawn_here_is_not_replaced(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.svg"
    path.write_text(content)
    with pytest.raises(FileExistsError, match=r"was not drawn here.*a\.svg"):
        write_svg(path, [Panel("a", {"x": [(1.0, 2.0)]})], columns=1)
    assert path.read_text() == content
    path.unlink()
    for value in (2.0, 3.0):
        write_svg(path, [Panel("a", {"x": [(1.0, value)]})], columns=1)


def texts(root: ET.Element) -> dict[str, tuple[float, float, str]]:
    """Position and anchor of each text."""
    return {
        text.text or "": (float(text.attrib["x"]), float(text.attrib["y"]), text.attrib.get("text-anchor", "start"))
        for text in root.iter(f"{SVG}text")
        if "x" in text.attrib
    }


@pytest.mark.parametrize("log", [False, True])
def test_numbers_stand_at_the_values_that_they_name(tmp_path: Path, log: bool) -> None:
    """Points at the very values of the ticks: those of x below the axes, those of y left of them, half a line lower."""
    values = [(1.0, 200.0), (4.0, 500.0), (10.0, 900.0)]
    x, y = Axis("frames", log, ticks=(1.0, 4.0, 10.0)), Axis("ms", log, ticks=(200.0, 500.0, 900.0))
    root = drawn(tmp_path, Panel("time", {"a": values}, x, y, markers=True))
    places, written = points_of(root)[0], texts(root)
    dots = [(float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in root.iter(f"{SVG}circle")]
    assert dots == places
    left, right, bottom = 58, 440 - 16, 270 - 46
    room = 0.04 / 1.08  # of each axis, at both of its ends
    assert places[0] == pytest.approx((left + room * (right - left), bottom - room * (bottom - 40)), abs=0.06)
    assert places[-1] == pytest.approx((right - room * (right - left), 40 + room * (bottom - 40)), abs=0.06)
    for (at_x, at_y), (value_x, value_y) in zip(places, values, strict=True):
        assert left < at_x < right
        assert 40 < at_y < bottom
        assert written[f"{value_x:.0f}"] == (pytest.approx(at_x, abs=0.11), bottom + 17, "middle")
        assert written[f"{value_y:.0f}"] == (left - 7, pytest.approx(at_y + 4, abs=0.11), "end")
    assert written["frames"] == ((left + right) / 2, bottom + 36, "middle")
    assert written["time"][:2] == (left, 22)
    (turned,) = [text for text in root.iter(f"{SVG}text") if text.text == "ms"]
    assert turned.attrib["transform"] == f"translate(14,{(40 + bottom) / 2:.0f}) rotate(-90)"


def test_names_of_lines_stand_beside_a_piece_of_them_and_wrap(tmp_path: Path) -> None:
    names = [f"a name of some length {number}" for number in range(4)]
    root = drawn(tmp_path, Panel("", {name: [(0.0, float(i))] for i, name in enumerate(names)}))
    written = [texts(root)[name] for name in names]
    pieces = [path.attrib["d"] for path in root.iter(f"{SVG}path") if path.attrib.get("stroke-width") == "3"]
    assert pieces == [f"M{x - 24:.0f} {y - 4:.0f}h18" for x, y, _ in written]
    assert written[0][:2] == (58 + 24, 8)
    assert [y for _, y, _ in written] == [8, 8, 26, 26]
    assert all(x + 6.3 * len(name) <= 440 - 16 for name, (x, _, _) in zip(names, written, strict=True))


def test_rows_have_a_dot_for_each_series_where_it_belongs(tmp_path: Path) -> None:
    rows = {"a < b": {"depth": 0.1, "points": 10.0}, "c": {"points": 1.0, "depth": 0.0}}
    write_rows(tmp_path / "rows.svg", Rows("errors & all", rows, Axis("%", log=True)))
    root = ET.parse(tmp_path / "rows.svg").getroot()
    dots = [(float(dot.attrib["cx"]), float(dot.attrib["cy"]), dot.attrib["fill"]) for dot in root.iter(f"{SVG}circle")]
    assert len(dots) == 3, "0 has no place on a logarithmic axis"
    (depth, upper, blue), (points, same, red), (middle, lower, also_red) = dots
    assert upper == same < lower
    assert middle - depth == pytest.approx(points - middle, abs=0.2)
    assert red == also_red != blue
    written, height = texts(root), lower - upper  # of a row
    room = 0.04 / 1.08  # of the axis, at both of its ends
    left = depth - room / (1 - 2 * room) * (points - depth)
    for label, at in (("a < b", upper), ("c", lower)):
        assert written[label] == (pytest.approx(left - 10, abs=0.6), pytest.approx(at + 4, abs=0.11), "end")
    for tick, at in (("0.1", depth), ("1", middle), ("10", points)):
        assert written[tick] == (pytest.approx(at, abs=0.11), lower + height / 2 + 17, "middle")
    words = [text.text for text in root.iter(f"{SVG}text")]
    assert {"errors & all", "a < b", "c", "depth", "points", "%"} <= set(words)
    write_rows(tmp_path / "rows.svg", Rows("again", rows))
    (tmp_path / "mine.svg").write_text("mine")
    with pytest.raises(FileExistsError):
        write_rows(tmp_path / "mine.svg", Rows("", rows))


def test_rows_without_values_have_labels_alone() -> None:
    root = ET.fromstring(draw_rows(Rows("nothing", {"a": {"depth": 0.0}}, Axis(log=True))))
    assert not list(root.iter(f"{SVG}circle"))
    assert "a" in [text.text for text in root.iter(f"{SVG}text")]
    assert ET.fromstring(draw_rows(Rows("empty", {}))) is not None
