"""Files appear whole or not at all; lines of a log are added to what is there."""

import json
import os
from pathlib import Path

import pytest

from tests.files.folders import listing
from tests.kills import killed_before
from vggt_int8.files import append_json_line, sweep, whole_file, write_json, write_whole


def test_json_is_strict_and_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    latin = os.fsdecode(b"caf\xe9.jpg")
    write_json(path, {"name": "图", "x": 1.5, "file": latin})
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "图", "x": 1.5, "file": latin}
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"x": float("inf")})
    assert json.loads(path.read_text(encoding="utf-8"))["x"] == 1.5
    assert listing(tmp_path) == ["a.json"]


def test_numbers_share_a_line_and_strings_stay_as_they_are(tmp_path: Path) -> None:
    document = {
        "matrix": [[1.5, -2e-9], [None, 3]],
        "text": "[\n1,2\n]",
        "words": ["a,b", "c"],
        "empty": [],
        "records": [{"x": [1, 2]}, {"x": []}],
    }
    write_json(tmp_path / "a.json", document)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == document
    assert "\n    [1.5, -2e-09],\n    [null, 3]\n" in text


@pytest.mark.parametrize(
    "document",
    [
        {"图": "a\tb", "none": None, "a": {"b": {}, "c": [{}, [], [[]], ["x", 1]]}, 1: True, 2.5: (), None: ("x",)},
        [],
        ["text"],
        "text",
        None,
    ],
    ids=repr,
)
def test_json_without_lists_of_numbers_is_what_python_writes(tmp_path: Path, document: object) -> None:
    write_json(tmp_path / "a.json", document)
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == json.dumps(
        document, indent=2, ensure_ascii=False
    ) + "\n"


def test_a_file_is_whole_keeps_its_mode_and_stays_behind_its_link(tmp_path: Path) -> None:
    path, link = tmp_path / "deep" / "a.txt", tmp_path / "link.txt"
    write_whole(path, "one")
    path.chmod(0o640)
    link.symlink_to(path)
    write_whole(link, b"two")
    assert link.is_symlink()
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("two", 0o640)
    assert not killed_before(10**6, lambda: None)
    for number in range(20):
        if not killed_before(number, lambda: write_whole(path, "three")):
            break
        assert path.read_text() in ("two", "three")
    sweep(path)
    assert listing(tmp_path) == ["deep/a.txt", "link.txt"]
    with pytest.raises(IsADirectoryError, match="a file is needed"):
        write_whole(tmp_path, "text")


def test_another_writer_of_the_same_file_sweeps_nothing_that_is_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it has its name, a file is held: what sweeps just before finds nothing to remove."""
    target, replace = tmp_path / "scene.json", Path.replace

    def swept_before(self: Path, to: Path) -> Path:
        sweep(target)
        return replace(self, to)

    monkeypatch.setattr(Path, "replace", swept_before)
    write_whole(target, "whole")
    assert target.read_text() == "whole"
    with whole_file(target) as staged:
        staged.write_text("by a program")
    assert target.read_text() == "by a program"
    assert [path.name for path in tmp_path.iterdir()] == ["scene.json"]


def test_lines_are_strict_json_and_stay_apart(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "log.jsonl"
    append_json_line(path, {"x": [1.5, float("nan")], "y": {"z": float("-inf")}, "file": os.fsdecode(b"caf\xe9")})
    with path.open("a") as file:
        file.write('{"x": 1')  # cut off by a kill
    append_json_line(path, {"x": (2,)})
    first, cut, last = path.read_text(encoding="utf-8").splitlines()
    assert json.loads(first) == {"x": [1.5, None], "y": {"z": None}, "file": "caf\udce9"}
    assert (cut, json.loads(last)) == ('{"x": 1', {"x": [2]})


def test_a_file_that_a_program_writes_takes_its_place_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "library.so"
    for content in (b"one", b"two"):
        with whole_file(path) as made:
            made.write_bytes(content)
            assert not path.exists() or path.read_bytes() == b"one"
        assert path.read_bytes() == content

    def fails() -> None:
        with whole_file(path) as made:
            made.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert path.read_bytes() == b"two"
    assert listing(tmp_path) == ["library.so"]
