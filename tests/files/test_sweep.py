"""What killed writers leave is swept, and nothing else."""

import errno
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.files.folders import fill, listing
from vggt_int8.files import (
    hidden,
    sweep,
)


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
    long_ago = time.time() - hidden.OLD_SECONDS - 60
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
    real, swept = hidden.lock, []

    def lock(descriptor: int, *, wait: bool = False) -> bool | None:
        if wait and not swept:
            (folder,) = tmp_path.glob(".out.partial-*")
            folder.rmdir()
            swept.append(folder)
        return real(descriptor, wait=wait)

    monkeypatch.setattr(hidden, "lock", lock)
    fill(tmp_path / "out", "a.json")
    assert len(swept) == 1
    assert listing(tmp_path) == ["out/a.json"]
