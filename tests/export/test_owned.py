"""A report is believed only if it is whole, this program's own, and speaks of its own folder."""

import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest

from vggt_int8.export import owned_files, write_report

GOOD = {"program": "vggt-int8", "command": "run", "files": ["points.ply", "report.json"]}


def test_a_report_lists_all_files_and_is_found_again(tmp_path: Path) -> None:
    latin = os.fsdecode(b"0000_caf\xe9.npy")
    (tmp_path / "depth").mkdir()
    for name in ("depth/0000_a.npy", f"depth/{latin}", "points.ply"):
        (tmp_path / name).touch()
    write_report(tmp_path, "run", {"format_version": 1, "inputs": []})
    assert owned_files(tmp_path, "run") == {"depth/0000_a.npy", f"depth/{latin}", "points.ply", "report.json"}
    with pytest.warns(UserWarning, match="is of another command, 'run'"):
        assert owned_files(tmp_path, "demo") == set()
    assert json.loads((tmp_path / "report.json").read_text())["format_version"] == 1


OTHERS: list[tuple[dict[str, Any], str]] = [
    ({"program": "another"}, "was not written by vggt-int8"),
    ({"command": "demo"}, "is of another command, 'demo'"),
    ({"command": 5}, "is of another command, 5"),
    ({"files": None}, "lists files that are not in its folder"),
    ({"files": "points.ply"}, "lists files that are not in its folder"),
    ({"files": [1]}, "lists files that are not in its folder"),
    ({"files": ["/etc/passwd"]}, "lists files that are not in its folder"),
    ({"files": ["depth/../../x"]}, "lists files that are not in its folder"),
    ({"files": [""]}, "lists files that are not in its folder"),
    ({"files": ["./points.ply"]}, "lists files that are not in its folder"),
]


@pytest.mark.parametrize(("change", "message"), OTHERS, ids=str)
def test_another_report_is_not_believed(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    report = tmp_path / "report.json"
    report.write_text(json.dumps(GOOD))
    assert owned_files(tmp_path, "run") == {"points.ply", "report.json"}
    report.write_text(json.dumps(GOOD | change))
    with pytest.warns(UserWarning, match=rf"report\.json {message}.*remove them by hand, or choose another folder"):
        assert owned_files(tmp_path, "run") == set()


def test_where_no_report_can_be_nothing_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in (tmp_path, tmp_path / "none", tmp_path / "file", tmp_path / "file" / "below"):
            assert owned_files(path, "demo") == set()


@pytest.mark.parametrize("lacks", [("files",), ("program",), ("command",), ("program", "command", "files")], ids=str)
def test_a_report_of_an_early_version_is_told_of(tmp_path: Path, lacks: tuple[str, ...]) -> None:
    (tmp_path / "report.json").write_text(json.dumps({key: GOOD[key] for key in GOOD if key not in lacks}))
    with pytest.warns(UserWarning, match="does not list the files .* as reports of early versions did not"):
        assert owned_files(tmp_path, "run") == set()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a whole JSON file"),
        (b"{", "is not a whole JSON file"),
        (b"[" * 100_000, "is nested too deep"),
        (b"\xff\xfe", "is not a whole JSON file"),
        (b"[]", "was not written by vggt-int8"),
        (b"null", "was not written by vggt-int8"),
        (json.dumps(GOOD).encode()[:-2], "is not a whole JSON file"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_damaged_report_is_not_believed(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "report.json").write_bytes(content)
    with pytest.warns(UserWarning, match=message):
        assert owned_files(tmp_path, "run") == set()


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    assert owned_files(tmp_path, "run") == set()  # without a word: there is none
    (tmp_path / "elsewhere.json").write_text(json.dumps(GOOD))
    report.symlink_to(tmp_path / "elsewhere.json")
    with pytest.warns(UserWarning, match="is a link, not a file"):
        assert owned_files(tmp_path, "run") == set()
    report.unlink()
    os.mkfifo(report)
    with pytest.warns(UserWarning, match="is a device, not a file"):
        assert owned_files(tmp_path, "run") == set()
    report.unlink()
    report.mkdir()
    with pytest.warns(UserWarning, match="is a folder, not a file"):
        assert owned_files(tmp_path, "run") == set()


def test_a_report_of_any_size_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "report.json").open("wb") as file:
        file.truncate(1 << 40)  # a hole
    with pytest.warns(UserWarning, match="has 1099511627776 bytes"):
        assert owned_files(tmp_path, "run") == set()
