"""A report is believed only if it is whole, this program's own, and speaks of its own folder."""

import json
import os
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
    assert owned_files(tmp_path, "demo") == set()
    assert json.loads((tmp_path / "report.json").read_text())["format_version"] == 1


@pytest.mark.parametrize(
    "change",
    [
        {"program": "another"},
        {"command": "demo"},
        {"files": None},
        {"files": "points.ply"},
        {"files": [1]},
        {"files": ["/etc/passwd"]},
        {"files": ["depth/../../x"]},
        {"files": [""]},
        {"files": ["./points.ply"]},
    ],
    ids=str,
)
def test_another_report_is_not_believed(tmp_path: Path, change: dict[str, Any]) -> None:
    report = tmp_path / "report.json"
    report.write_text(json.dumps(GOOD))
    assert owned_files(tmp_path, "run") == {"points.ply", "report.json"}
    report.write_text(json.dumps(GOOD | change))
    assert owned_files(tmp_path, "run") == set()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b"[]", b"null", json.dumps(GOOD).encode()[:-2]]
)
def test_a_damaged_report_is_not_believed(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "report.json").write_bytes(content)
    assert owned_files(tmp_path, "run") == set()


def test_a_report_elsewhere_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere.json").write_text(json.dumps(GOOD))
    (tmp_path / "report.json").symlink_to(tmp_path / "elsewhere.json")
    assert owned_files(tmp_path, "run") == set()
    (tmp_path / "report.json").unlink()
    os.mkfifo(tmp_path / "report.json")
    assert owned_files(tmp_path, "run") == set()
