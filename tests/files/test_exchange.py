"""An exchange of files that is cut short at any moment is undone; nothing that only looks like one is."""

import os
import shutil
import traceback
from pathlib import Path

import pytest

from tests.files.folders import ENTRIES, OURS, contents, fill, listing
from tests.kills import killed_before
from vggt_int8.files import staged_folder, staging_folder, sweep, undo_exchange
from vggt_int8.files.exchange import exchange


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_old_or_new_or_no_last_entry(tmp_path: Path) -> None:
    """And the next call for the folder finds what was there before, whole."""
    number, seen = 0, set()
    while True:
        out = tmp_path / str(number) / "out"
        out.mkdir(parents=True)
        fill(out, "a.json", "data/old.npy")
        (out / "thesis.txt").write_text("mine")
        old = contents(out)
        came = killed_before(number, lambda out=out: fill(out, "a.json", "data/new.npy", overwrite=True))
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


@pytest.mark.slow
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
        killed_before(10**6, half)
        assert set(contents(tmp_path)) == {"data/new.npy"}
        came = killed_before(number, lambda: sweep(tmp_path))
        sweep(tmp_path)
        assert contents(tmp_path) == old
        if not came:
            break
    assert 5 < number < 39


def test_what_took_the_place_of_old_content_stays_as_well(tmp_path: Path) -> None:
    fill(tmp_path, "a.json", "data/old.npy")
    for number in range(100):
        killed_before(number, lambda: fill(tmp_path, "data/new.npy", "a.json", overwrite=True))
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
        killed_before(number, lambda: fill(cut, "data/new.npy", "a.json", overwrite=True))
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


@pytest.mark.slow
def test_a_writer_of_a_folder_that_another_left_in_pieces_meanwhile(tmp_path: Path) -> None:
    fill(tmp_path, "a.json", "data/old.npy")
    with staged_folder(tmp_path, entries=ENTRIES, overwrite=True, owned=lambda _: OURS) as folder:
        (folder / "a.json").write_text("mine")
        for number in range(100):
            killed_before(number, lambda: fill(tmp_path, "data/new.npy", "a.json", overwrite=True))
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
