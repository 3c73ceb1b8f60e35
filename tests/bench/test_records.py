"""Result files: one complete line per row, appended; what is no row is named by file and line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vggt_int8.bench.records import Row, append_row, check_row, identity, read_rows

MakeRow = Callable[..., Row]


def test_rows_are_appended_and_come_back(tmp_path: Path, make_row: MakeRow) -> None:
    file = tmp_path / "results" / "h200.jsonl"
    rows = [make_row("fp32", 1, 50.0), make_row("fp32", 10, None)]
    for count, row in enumerate(rows, start=1):
        append_row(file, row)
        assert len(file.read_text().splitlines()) == count
    assert read_rows([file]) == rows
    assert read_rows([file, file]) == rows + rows


def test_line_separators_in_a_text_are_no_ends_of_rows(tmp_path: Path, make_row: MakeRow) -> None:
    row = make_row("fp32", 1, 50.0, reason="two\u2028lines\x85")
    append_row(tmp_path / "r.jsonl", row)
    assert read_rows([tmp_path / "r.jsonl"]) == [row]


def test_not_a_number_becomes_null(tmp_path: Path, make_row: MakeRow) -> None:
    errors = {"depth": {"relative": float("nan"), "max_abs": float("inf")}}
    append_row(tmp_path / "r.jsonl", make_row("fp32", 1, None, status="wrong", errors=errors))
    (row,) = read_rows([tmp_path / "r.jsonl"])
    assert row["errors"] == {"depth": {"relative": None, "max_abs": None}}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"format": 0}, "format is 0, this version reads 1: measure again"),
        ({"ms": "fast"}, "ms is 'fast'"),
        ({"frames": True}, "frames is True"),
        ({"status": "fine"}, "status is 'fine'"),
        ({"status": "wrong"}, "status 'wrong' has the time 50.0"),
        ({"ms": None}, "status 'ok' has the time None"),
        ({"speed": 3}, "unknown: 'speed'$"),
        ({"x" * 100_000: 3}, r"unknown: 'x+\.\.\.$"),
        ({"model": ["x" * 100_000]}, r"model is \['x+\.\.\.$"),
        ({"ms": -5}, "ms is -5, not a time"),
        ({"frames": 0}, "frames is 0, not a number of frames"),
        ({"size": [True, 392]}, r"size is \[True, 392\], not \[height, width\]"),
        ({"size": [392]}, r"size is \[392\], not \[height, width\]"),
        ({"ms": 1e-300}, "ms is 1e-300, not a time"),
        ({"peak_gib": 0}, "peak_gib is 0, not a size"),
        ({"share": 1e300}, r"share is 1e\+300, not a number below"),
        ({"machine": {}}, "machine is {}, without gpu and cpu"),
        ({"machine": {"gpu": None, "cpu": "some CPU", "torch_threads": True}}, "without torch_threads"),
        ({"machine": {"gpu": None, "cpu": "some CPU"}}, "without gpu and without torch_threads"),
        ({"machine": {"gpu": {}, "cpu": "some CPU"}}, "gpu is {}, neither null nor an object with a name"),
        ({"versions": {"torch": 2}}, "versions is {'torch': 2}"),
        ({"errors": {"depth": {}}}, "errors is .*, not {output: relative and max_abs}"),
        ({"errors": {"depth": {"relative": "x", "max_abs": 0.5}}}, "errors is .*'x'.*, numbers from 0 on or null"),
        ({"errors": {"depth": {"relative": True, "max_abs": 0.5}}}, "errors is .*True.*, numbers from 0 on or null"),
        ({"errors": {"depth": {"relative": 0.5, "max_abs": -1}}}, "errors is .*-1.*, numbers from 0 on or null"),
    ],
)
def test_bad_rows_are_refused(tmp_path: Path, make_row: MakeRow, change: dict, text: str) -> None:
    row = make_row("fp32", 1, 50.0) | change
    with pytest.raises(ValueError, match=text):
        check_row(row)
    with pytest.raises(ValueError, match=text):
        append_row(tmp_path / "r.jsonl", row)
    assert not (tmp_path / "r.jsonl").exists()


@pytest.mark.parametrize("field", ["peak_gib", "share"])
def test_a_file_without_numbers_is_refused(tmp_path: Path, make_row: MakeRow, field: str) -> None:
    file = tmp_path / "r.jsonl"
    for value in (float("nan"), float("inf")):
        file.write_text(json.dumps(make_row("fp32", 1, 50.0, **{field: value})))
        with pytest.raises(ValueError, match=rf"r\.jsonl, line 1, .* {field} is {value}, not a number"):
            read_rows([file])


@pytest.mark.parametrize("line", ["{", "[1]", "[" * 100_000, '{"variant": "bf16", "frames": 1, "ms": 39.2}'])
def test_the_line_of_a_bad_file_is_named(tmp_path: Path, make_row: MakeRow, line: str) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text(json.dumps(make_row("fp32", 1, 50.0)) + f"\n{line}\n")
    with pytest.raises(ValueError, match=r"r\.jsonl, line 2, is no row of a benchmark"):
        read_rows([file])


def test_rows_of_another_machine_or_limit_are_other_measurements(make_row: MakeRow) -> None:
    row = make_row("fp32", 1, 50.0)
    assert identity(row) == identity(make_row("fp32", 1, 49.0, date="2027-01-01"))
    others = ({"memory_gb": 8}, {"size": [518, 518]}, {"model": "a/b"}, {"frames": 2}, {"variant": "bf16"})
    machine = {"gpu": {"name": "NVIDIA GeForce RTX 4090"}, "cpu": "some CPU"}
    for other in (*others, {"machine": machine}):
        assert identity(row | other) != identity(row)
