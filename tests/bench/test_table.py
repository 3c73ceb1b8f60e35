"""The README's table: made from rows alone, the same each time, no speed-up from a row that failed."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vggt_int8.bench.records import Row
from vggt_int8.bench.table import BEGIN, END, OURS, markdown, newest, update_readme

MakeRow = Callable[..., Row]


@pytest.fixture
def rows(make_row: MakeRow) -> list[Row]:
    return [
        make_row("reference", 1, 66.0, 5.2),
        make_row("reference", 10, 193.0, 6.73),
        make_row("fp32", 1, 62.0, 6.0),
        make_row("bf16-compiled", 1, 31.0, 2.46),
        make_row("bf16-compiled", 10, 104.0, 3.54),
        make_row("bf16-compiled-graph", 1, 22.0, 2.6),
        make_row("torchao-compiled", 10, None, None, reason="TimeoutError: no result after 180 s of compiling"),
        make_row(OURS, 1, 11.0, 1.35),
        make_row(OURS, 10, 80.0, 1.89),
    ]


def line(text: str, start: str) -> list[str]:
    """Cells of the only table row that starts so."""
    (found,) = [row for row in text.splitlines() if row.startswith(f"| {start} |")]
    return [cell.strip() for cell in found.strip("|").split("|")[1:]]


def test_times_and_gains(rows: list[Row]) -> None:
    text = markdown(rows)
    assert "one NVIDIA H200, random weights of VGGT-1B's shapes, torch 2.11.0, torchao 0.18.0, " in text
    assert "2026-11-24, `vggt-int8 bench`. Milliseconds (peak GiB of GPU memory, weights included);" in text
    assert line(text, "reference") == ["66.0 (5.20)", "193 (6.73)"]
    assert line(text, OURS) == ["**11.0** (1.35)", "**80.0** (1.89)"]
    assert line(text, "fp32") == ["62.0 (6.00)", "–"]
    assert line(text, "torchao-compiled") == ["–", "failed"]
    assert "- torchao-compiled, 10 frames: failed (TimeoutError: no result after 180 s of compiling)" in text
    assert line(text, "times as fast as reference") == ["6.00 ×", "2.41 ×"]
    assert line(text, "times as fast as the fastest compiled bf16") == ["2.00 ×", "1.30 ×"]
    assert line(text, "largest relative error of an output") == ["1.23%", "1.23%"]


def test_the_sketch_stands_beside_what_was_measured(rows: list[Row]) -> None:
    text = markdown(rows)
    assert "| | early sketch, RTX 4090, never measured | measured, NVIDIA H200 |" in text
    assert line(text, "fp32, 1 image") == ["50 ms", "62.0 ms"]
    assert line(text, "fp32, 10 images") == ["450 ms", "–"]
    assert line(text, "INT8 dynamic, 10 images") == ["360 ms", "80.0 ms"]
    assert line(text, "INT8 dynamic, GPU memory, 1 image") == ["2 GB", "1.4 GB"]
    assert "`vggt-int8 bench --frames 1,10 --variants fp32,int8_dynamic:native`" in text
    assert "sketch" not in markdown([row for row in rows if row["variant"] == "reference"])


def test_an_output_that_is_not_finite_is_the_worst(rows: list[Row], make_row: MakeRow) -> None:
    errors = {"depth": {"relative": 0.01, "max_abs": 0.1}, "pose_enc": {"relative": None, "max_abs": None}}
    rows[-1] = make_row(OURS, 10, None, status="wrong", errors=errors)
    assert line(markdown(rows), "largest relative error of an output") == ["1.23%", "not finite"]


def test_rows_of_several_runs_are_told(rows: list[Row]) -> None:
    assert "runs" not in markdown(rows)
    rows[-1] = rows[-1] | {"run": "2026-11-25T10:00:00+00:00"}
    assert "- 10 frames: the rows are of 2 runs, not of one" in markdown(rows)


def test_other_models_are_not_set_beside_the_sketch(rows: list[Row]) -> None:
    assert "sketch" not in markdown([row | {"model": "random:small"} for row in rows])


def test_versions_of_pytorch_are_not_mixed(rows: list[Row]) -> None:
    rows[0] = rows[0] | {"versions": rows[0]["versions"] | {"torch": "2.4.0"}}
    with pytest.raises(ValueError, match=r"several versions of PyTorch \(2\.11\.0, 2\.4\.0\)"):
        markdown(rows)


@pytest.mark.parametrize("status", ["wrong", "failed"])
def test_a_row_that_did_not_pass_shows_no_time_and_no_speed_up(rows: list[Row], make_row: MakeRow, status: str) -> None:
    text = markdown([*rows, make_row(OURS, 10, None, status=status, reason="relative error of depth is 0.2")])
    assert line(text, OURS) == ["**11.0** (1.35)", status]
    assert line(text, "times as fast as reference") == ["6.00 ×", "–"]
    assert line(text, "bf16-compiled")[1] == "**104** (3.54)"
    assert "80.0" not in text


def test_rows_without_fp32_say_so(make_row: MakeRow) -> None:
    rows = [make_row(OURS, 1, 11.0), make_row(OURS, 100, 2800.0, compared_with="fp16")]
    text = markdown([*rows, make_row(OURS, 1000, 250e3, compared_with="", errors={})])
    assert "outputs at 100 frames were compared with the plain network in fp16" in text
    assert "outputs at 1000 frames were compared with nothing; only that they are finite" in text
    assert line(text, "largest relative error of an output") == ["1.23%", "1.23%", "–"]


def test_the_last_of_equal_rows_counts(make_row: MakeRow) -> None:
    table = newest([make_row("fp32", 1, 50.0), make_row("fp32", 1, 40.0)])
    assert table["fp32", 1]["ms"] == 40.0


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"machine": {"gpu": {"name": "RTX 4090"}, "cpu": ""}}, r"several devices \(NVIDIA H200, RTX 4090\)"),
        ({"size": [518, 518]}, r"several image sizes \(392x518, 518x518\)"),
        ({"model": "facebook/VGGT-1B"}, "several models"),
        ({"memory_gb": 8}, "several memory limits"),
    ],
)
def test_rows_that_do_not_belong_together(make_row: MakeRow, change: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        markdown([make_row("fp32", 1, 50.0), make_row("fp32", 10, 50.0, **change)])


def test_no_rows() -> None:
    with pytest.raises(ValueError, match="no rows"):
        markdown([])


def test_the_readme_is_updated_once(tmp_path: Path, rows: list[Row]) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n\n{BEGIN}\nold\n{END}\n\nrest\n")
    assert update_readme(readme, markdown(rows, "plot.svg"))
    first = readme.read_text()
    assert first.startswith(f"# Title\n\n{BEGIN}\n")
    assert first.endswith(f"{END}\n\nrest\n")
    assert "](plot.svg)" in first
    assert "old\n" not in first
    assert not update_readme(readme, markdown(rows, "plot.svg"))
    assert readme.read_text() == first
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


@pytest.mark.parametrize("text", ["# Title\n", f"{BEGIN}\n", f"{END}\n{BEGIN}\n", f"{BEGIN}\n{BEGIN}\n{END}\n"])
def test_a_readme_without_markers_is_left_alone(tmp_path: Path, text: str) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(ValueError, match="must hold the lines"):
        update_readme(readme, "table\n")
    assert readme.read_text() == text


def test_line_ends_stay_as_they_are(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_bytes(f"a\r\n{BEGIN}\r\nold\r\n{END}\r\nb\r\n".encode())
    assert update_readme(readme, "| 1 |\n")
    assert readme.read_bytes() == f"a\r\n{BEGIN}\r\n| 1 |\r\n{END}\r\nb\r\n".encode()
    assert not update_readme(readme, "| 1 |\n")
