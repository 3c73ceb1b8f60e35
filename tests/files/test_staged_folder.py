"""Output folders appear whole or not at all, and nobody's files are lost."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.files.folders import ENTRIES, fill, listing
from vggt_int8.files import staged_folder, staging, write_whole


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


@pytest.mark.parametrize("name", ["data/thesis.txt", "data/deep/thesis.txt", "data", "data/old.npy"])
def test_overwrite_refuses_what_is_not_ours_and_names_it(tmp_path: Path, name: str) -> None:
    """A file in our own folder, a file or a link where it would be, a link in the place of a file."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "thesis.txt").write_text("mine")
    out = tmp_path / "out"
    fill(out, "a.json")
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".txt"):
        (out / name).write_text("mine")
    else:
        (out / name).symlink_to(tmp_path / "elsewhere")
    before = listing(tmp_path)
    with pytest.raises(FileExistsError, match=rf"lists as its own: {name}\. Nothing was replaced"):
        fill(out, "data/new.npy", overwrite=True)
    assert listing(tmp_path) == before


def test_what_comes_while_we_work_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a.json", "data/old.npy")
    real = staging._check_replaceable

    def check(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        if kwargs:  # the second check: only the look at what was moved is left
            (tmp_path / "data" / "thesis.txt").write_text("mine")

    monkeypatch.setattr(staging, "_check_replaceable", check)
    with pytest.raises(FileExistsError, match=r"data/thesis\.txt"):
        fill(tmp_path, "a.json", "data/new.npy", overwrite=True)
    assert listing(tmp_path) == ["a.json", "data/old.npy", "data/thesis.txt"]


def test_nothing_is_ours_unless_it_is_said(tmp_path: Path) -> None:
    fill(tmp_path, "a.json")
    with (
        pytest.raises(FileExistsError, match=r"a\.json"),
        staged_folder(tmp_path, entries=ENTRIES, overwrite=True),
    ):
        pass
    assert (tmp_path / "a.json").read_text() == "new a.json"


def test_entries_that_overwrite_would_not_know_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\['stray.txt'\] must be listed in entries"):
        fill(tmp_path / "out", "stray.txt")
    assert listing(tmp_path) == []


def test_a_folder_that_is_made_meanwhile_is_not_touched(tmp_path: Path) -> None:
    def slowly(out: Path, name: str) -> None:
        with staged_folder(out, entries=ENTRIES) as folder:
            (folder / "a.json").write_text("new")
            out.mkdir(exist_ok=True)
            (out / name).write_text("mine")

    with pytest.raises(FileExistsError, match="was made by something else meanwhile"):
        slowly(tmp_path / "out", "thesis.txt")
    (tmp_path / "filled").mkdir()
    with pytest.raises(FileExistsError, match="is not empty"):
        slowly(tmp_path / "filled", "a.json")
    assert listing(tmp_path) == ["filled/a.json", "out/thesis.txt"]
    assert (tmp_path / "filled" / "a.json").read_text() == "mine"


def test_a_link_to_nowhere_is_no_place_for_results(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "gone")
    with pytest.raises(FileExistsError, match=r"is a link to nowhere \(.*gone\): choose another"):
        fill(tmp_path / "out", "a.json")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("length", [255, 120])
def test_the_longest_names_work(tmp_path: Path, length: int) -> None:
    name = ("图" if length == 120 else "x") * (length if length == 255 else 80)
    fill(tmp_path / name, "a.json")
    write_whole(tmp_path / f"{name[:-1]}y", "text")
    assert len(listing(tmp_path)) == 2
