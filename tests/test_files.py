"""Output folders appear whole or not at all, nobody's files are lost, and what a kill leaves is swept."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vggt_int8 import files
from vggt_int8.exchange import exchange
from vggt_int8.files import staged_folder, staging_folder, sweep, undo_exchange, write_json, write_whole

ENTRIES = ("data", "a.json")  # a.json is the last to come


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


OURS = {"a.json", "data/old.npy", "data/new.npy"}


def fill(out: Path, *files: str, overwrite: bool | None = False, error: BaseException | None = None) -> None:
    with staged_folder(out, entries=ENTRIES, overwrite=overwrite, owned=lambda _: OURS) as folder:
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
    real = files._check_replaceable

    def check(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        if kwargs:  # the second check: only the look at what was moved is left
            (tmp_path / "data" / "thesis.txt").write_text("mine")

    monkeypatch.setattr(files, "_check_replaceable", check)
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


def killed_at(number: int, work: Callable[[], None]) -> bool:
    """Do `work` in a child that ends, as by SIGKILL, right before its rename, link or removal of that number.

    Returns whether it came so far.
    """
    child = os.fork()
    if child == 0:
        left = number

        def ends(real: Callable[..., None]) -> Callable[..., None]:
            def counted(*args: object, **kwargs: object) -> None:
                nonlocal left
                if left == 0:
                    os._exit(9)
                left -= 1
                real(*args, **kwargs)

            return counted

        try:
            for name in ("rename", "replace", "unlink", "rmdir", "mkdir"):
                setattr(os, name, ends(getattr(os, name)))
            work()
        finally:
            os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9), code
    return code == 9


def contents(folder: Path) -> dict[str, str]:
    """What is not hidden, by name."""
    names = (name for name in listing(folder) if not any(part.startswith(".") for part in Path(name).parts))
    return {name: (folder / name).read_text() for name in names}


def test_a_kill_at_any_moment_leaves_old_or_new_or_no_last_entry(tmp_path: Path) -> None:
    """And the next call for the folder finds what was there before, whole."""
    number, seen = 0, set()
    while True:
        out = tmp_path / str(number) / "out"
        out.mkdir(parents=True)
        fill(out, "a.json", "data/old.npy")
        (out / "thesis.txt").write_text("mine")
        old = contents(out)
        came = killed_at(number, lambda out=out: fill(out, "a.json", "data/new.npy", overwrite=True))
        new = {"a.json": "new a.json", "data/new.npy": "new data/new.npy", "thesis.txt": "mine"}
        state = contents(out)
        assert state in (old, new) or ("a.json" not in state and state["thesis.txt"] == "mine")
        sweep(out)
        assert contents(out) == (new if state == new else old)
        assert listing(out) == sorted(contents(out))  # and nothing hidden is left
        seen.add("old" if state == old else "new" if state == new else "incomplete")
        if not came:
            break
        number += 1
    assert seen == {"old", "new", "incomplete"}


def test_putting_back_may_be_killed_as_well(tmp_path: Path) -> None:
    def half() -> None:
        with staging_folder(tmp_path) as staging:
            (staging / "new" / "data").mkdir(parents=True)
            (staging / "new" / "a.json").write_text("new")
            (staging / "new" / "data" / "new.npy").write_text("new")
            real, calls = os.rename, []

            def rename(*names: str) -> None:
                calls.append(names)
                if len(calls) == 4:  # a.json and data are away, data's successor is there, a.json's is to come
                    os._exit(9)
                real(*names)

            os.rename = rename
            exchange(staging, list(ENTRIES), OURS)

    fill(tmp_path, "a.json", "data/old.npy")
    old = contents(tmp_path)
    for number in range(40):
        killed_at(10**6, half)
        assert set(contents(tmp_path)) == {"data/new.npy"}
        came = killed_at(number, lambda: sweep(tmp_path))
        sweep(tmp_path)
        assert contents(tmp_path) == old
        if not came:
            break
    assert 5 < number < 39


def test_what_took_the_place_of_old_content_stays_as_well(tmp_path: Path) -> None:
    fill(tmp_path, "a.json", "data/old.npy")
    for number in range(100):
        killed_at(number, lambda: fill(tmp_path, "data/new.npy", "a.json", overwrite=True))
        if not (tmp_path / "a.json").exists():
            break
    (tmp_path / "a.json").write_text("mine")
    with pytest.warns(UserWarning, match=r"a\.json is in the way of an earlier one, kept as .*old/a\.json"):
        sweep(tmp_path)
    assert (tmp_path / "a.json").read_text() == "mine"
    assert [path.read_text() for path in tmp_path.glob(".*/old/a.json")] == ["new a.json"]


@pytest.mark.parametrize(
    "journal",
    [
        '{"folder": INODE, "new": {"../../thesis.txt": 1, "a.json": 1}}',
        '{"folder": INODE, "new": {"a.json": "1"}}',
        '{"folder": INODE, "new": ["a.json"]}',
        '{"folder": 1, "new": {"a.json": 1}}',
        '{"new": {"a.json": 1}}',
        '{"folder": INODE, "new": {"a.json": 1}}' + " " * 2**20,
        "{",
        "[1]",
        "1",
    ],
)
@pytest.mark.parametrize("link", [None, "old", "new"])
def test_a_folder_that_only_looks_like_ours_moves_nothing(tmp_path: Path, journal: str, link: str | None) -> None:
    """It may have come with a checkpoint from anywhere."""
    staging, private = tmp_path / "out" / ".out.partial-0123abcd", tmp_path / "private"
    for folder in (staging / "new", staging / "old", private):
        folder.mkdir(parents=True)
    (tmp_path / "thesis.txt").write_text("mine")
    (private / "key").write_text("mine")
    (staging / "new" / "a.json").write_text("planted")
    if link is not None:
        journal = '{"folder": INODE, "new": {"a.json": 1}}'
        shutil.rmtree(staging / link)
        (staging / link).symlink_to(private)
        (private / "a.json").write_text("mine")
    (staging / "exchange.json").write_text(journal.replace("INODE", str(staging.stat().st_ino)))
    before = listing(tmp_path)
    with pytest.warns(UserWarning, match="is left as it is"):
        sweep(tmp_path / "out")
    with pytest.warns(UserWarning, match="is left as it is"):
        assert undo_exchange(tmp_path / "out") == [staging]
    assert listing(tmp_path) == before


def test_a_copy_of_a_folder_that_was_cut_short_moves_nothing(tmp_path: Path) -> None:
    """Its journal tells of the files of the original, which is still put back, under another name as well."""
    cut, copy, renamed = tmp_path / "cut", tmp_path / "copy", tmp_path / "renamed"
    fill(cut, "a.json", "data/old.npy")
    old = contents(cut)
    for number in range(100):
        killed_at(number, lambda: fill(cut, "data/new.npy", "a.json", overwrite=True))
        if not (cut / "a.json").exists():
            break
    shutil.copytree(cut, copy)
    before = listing(copy)
    with pytest.warns(UserWarning, match="is left as it is"):
        assert len(undo_exchange(copy)) == 1
    assert listing(copy) == before
    cut.rename(renamed)
    assert undo_exchange(renamed) == []
    assert contents(renamed) == old


def test_two_writers_of_one_folder_take_turns(tmp_path: Path) -> None:
    """What is there at any time after is of one of them; neither fails, and nothing hidden stays."""

    def write(name: str) -> None:
        for _ in range(40):
            fill(tmp_path, f"data/{name}.npy", "a.json", overwrite=True)

    fill(tmp_path, "a.json")
    children = []
    for name in ("old", "new"):
        if (child := os.fork()) == 0:
            try:
                write(name)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert listing(tmp_path) in (["a.json", "data/old.npy"], ["a.json", "data/new.npy"])
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_writer_of_a_folder_that_another_left_in_pieces_meanwhile(tmp_path: Path) -> None:
    fill(tmp_path, "a.json", "data/old.npy")
    with staged_folder(tmp_path, entries=ENTRIES, overwrite=True, owned=lambda _: OURS) as folder:
        (folder / "a.json").write_text("mine")
        for number in range(100):
            killed_at(number, lambda: fill(tmp_path, "data/new.npy", "a.json", overwrite=True))
            if not (tmp_path / "a.json").exists():
                break
    assert contents(tmp_path) == {"a.json": "mine"}
    assert listing(tmp_path) == ["a.json"]


def test_a_reader_moves_nothing_while_a_writer_lives(tmp_path: Path) -> None:
    fill(tmp_path, "a.json")
    with staging_folder(tmp_path) as staging:
        assert undo_exchange(tmp_path) == [staging]
        (tmp_path / "a.json").unlink()
        assert undo_exchange(tmp_path) == [staging]


@pytest.mark.parametrize("exists", [False, True])
def test_a_killed_writer_is_swept_by_the_next_and_a_living_one_is_not(tmp_path: Path, exists: bool) -> None:
    out = tmp_path / "out"
    if exists:
        out.mkdir()
    code = """import sys, time
from vggt_int8.files import staged_folder
with staged_folder(sys.argv[1], entries=["a.json"]) as folder:
    (folder / "a.json").write_text("half")
    print("there", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(out)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"there\n"
    sweep(out)
    assert len(list(tmp_path.rglob(".out.partial-*"))) == 1
    process.kill()
    process.wait()
    process.stdout.close()
    assert len(list(tmp_path.rglob(".out.partial-*"))) == 1
    fill(out, "a.json")
    assert listing(tmp_path) == ["out/a.json"]


def test_leftovers_of_earlier_versions_are_swept_and_what_looks_like_them_is_not(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name in (".out.partial-0123abcd", "out/.out.partial-0123abcd", "out/.saving-ab_d0123"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "half").write_text("half")
    (tmp_path / ".out.partial-ffffffff").write_text("half a file")
    kept = [".other.partial-0123abcd", ".out.partial-0123ABCD", ".saving-ab_d0123", ".out.partial-0123abcde"]
    for name in kept:
        (tmp_path / name).mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "thesis.txt").write_text("mine")
    (tmp_path / ".out.partial-11111111").symlink_to(elsewhere)
    sweep(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [*kept, ".out.partial-11111111", "elsewhere", "out"]
    )
    assert list(out.iterdir()) == []
    assert (elsewhere / "thesis.txt").read_text() == "mine"


def test_without_locks_only_what_is_old_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.EBADF, "as NFS says of a folder")

    monkeypatch.setattr(fcntl, "flock", flock)
    young, old = tmp_path / ".out.partial-00000000", tmp_path / ".out.partial-11111111"
    for folder in (young, old):
        (folder / "new").mkdir(parents=True)
    long_ago = time.time() - files.OLD_SECONDS - 60
    os.utime(old / "new", (long_ago, long_ago))
    os.utime(old, (long_ago, long_ago))
    os.utime(young, (long_ago, long_ago))  # what is in it is not
    fill(tmp_path / "out", "a.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == [young.name, "out"]


def test_other_users_leftovers_are_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".out.partial-00000000").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    sweep(tmp_path / "out")
    assert (tmp_path / ".out.partial-00000000").exists()


def test_a_sweep_between_making_and_locking_is_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, swept = files._lock, []

    def lock(descriptor: int, *, wait: bool = False) -> bool | None:
        if wait and not swept:
            (folder,) = tmp_path.glob(".out.partial-*")
            folder.rmdir()
            swept.append(folder)
        return real(descriptor, wait=wait)

    monkeypatch.setattr(files, "_lock", lock)
    fill(tmp_path / "out", "a.json")
    assert len(swept) == 1
    assert listing(tmp_path) == ["out/a.json"]


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


def test_a_file_is_whole_keeps_its_mode_and_stays_behind_its_link(tmp_path: Path) -> None:
    path, link = tmp_path / "deep" / "a.txt", tmp_path / "link.txt"
    write_whole(path, "one")
    path.chmod(0o640)
    link.symlink_to(path)
    write_whole(link, b"two")
    assert link.is_symlink()
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("two", 0o640)
    assert not killed_at(10**6, lambda: None)
    for number in range(20):
        if not killed_at(number, lambda: write_whole(path, "three")):
            break
        assert path.read_text() in ("two", "three")
    sweep(path)
    assert listing(tmp_path) == ["deep/a.txt", "link.txt"]
    with pytest.raises(IsADirectoryError, match="a file is needed"):
        write_whole(tmp_path, "text")
