"""Output folders appear whole or not at all, and nobody's files are lost."""

import json
import os
from pathlib import Path

import pytest

from vggt_int8.export.files import staged_folder, write_json

ENTRIES = ("data", "a.json")


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def fill(out: Path, *files: str, overwrite: bool = False, error: BaseException | None = None) -> None:
    with staged_folder(out, entries=ENTRIES, overwrite=overwrite) as folder:
        for name in files:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(f"new {name}")
        if error is not None:
            raise error


@pytest.mark.parametrize("exists", [False, True])
def test_the_folder_is_filled_at_the_end(tmp_path: Path, exists: bool) -> None:
    out = tmp_path / "deep" / "out"
    if exists:
        out.mkdir(parents=True)
    with staged_folder(out, entries=ENTRIES) as folder:
        (folder / "a.json").write_text("1")
        assert not (out / "a.json").exists()
    assert [path.name for path in out.iterdir()] == ["a.json"]
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    umask = os.umask(0)
    os.umask(umask)
    assert out.stat().st_mode & 0o777 == 0o777 & ~umask


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_nothing_behind(tmp_path: Path, exists: bool, error: type[BaseException]) -> None:
    out = tmp_path / "out"
    if exists:
        fill(out, "a.json")
    before = listing(tmp_path)
    with pytest.raises(error):
        fill(out, "data/half.npy", overwrite=True, error=error())
    assert listing(tmp_path) == before
    assert out.exists() == exists


def test_an_error_leaves_no_new_parent_folder(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(RuntimeError):
        fill(tmp_path / "mine" / "a" / "b" / "out", "data/half.npy", error=RuntimeError())
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]


def test_no_overwriting_is_advised_where_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"is not empty: choose another one$"):
        fill(tmp_path, "a.json", overwrite=None)


def test_a_filled_folder_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"not empty.*--overwrite"):
        fill(tmp_path, "a.json")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="is a file"):
        fill(tmp_path / "file", "a.json", overwrite=True)
    assert listing(tmp_path) == ["file", "thesis.txt"]


def test_overwrite_replaces_our_entries_and_leaves_other_files(tmp_path: Path) -> None:
    fill(tmp_path, "a.json", "data/old.npy")
    (tmp_path / "thesis.txt").write_text("mine")
    fill(tmp_path, "data/new.npy", overwrite=True)
    assert listing(tmp_path) == ["data/new.npy", "thesis.txt"]


def test_entries_that_overwrite_would_not_know_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\['stray.txt'\] must be listed in entries"):
        fill(tmp_path / "out", "stray.txt")
    assert listing(tmp_path) == []


def test_json_is_strict_and_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"name": "图", "x": 1.5})
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "图", "x": 1.5}
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
