"""No code that another user could have written is loaded: it is made anew, privately, and a warning says why."""

import atexit
import ctypes
import os
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from vggt_int8.kernels.cpu import cache as cpu_cache
from vggt_int8.kernels.cpu import compiled, compiler
from vggt_int8.kernels.cpu.cache import _sealed, kept_or_made, open_checked

NAME = "cpu-0123.so"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's folder, not made yet; the private folder is under the test's as well."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cpu_cache.tempfile, "tempdir", str(tmp_path / "temporary"))
    cpu_cache._private_folder.cache_clear()
    yield tmp_path / "cache" / "vggt-int8"
    cpu_cache._private_folder.cache_clear()


def make(path: Path) -> None:
    path.write_bytes(b"ours")


def plant(path: Path, content: bytes = b"planted") -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_bytes(_sealed(content))
    path.chmod(0o700)


def test_it_is_made_once_for_its_user_alone(cache: Path) -> None:
    umask = os.umask(0o002)
    try:
        path = kept_or_made(NAME, make)
    finally:
        os.umask(umask)
    assert path == cache / NAME
    assert (path.stat().st_mode & 0o777, cache.stat().st_mode & 0o777) == (0o700, 0o700)
    assert [found.name for found in cache.iterdir()] == [NAME]

    def never(_: Path) -> None:
        raise AssertionError

    assert kept_or_made(NAME, never) == path
    cache.chmod(0o500)  # a cache that is only read, as of a container's image
    assert kept_or_made(NAME, never) == path
    cache.chmod(0o755)
    assert kept_or_made(NAME, never) == path


def others(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a path to another user; without the right to, be another user."""
    if os.geteuid() == 0:
        os.chown(path, 12345, 12345, follow_symlinks=False)
    else:
        monkeypatch.setattr(cpu_cache.os, "geteuid", lambda: path.lstat().st_uid + 1)


BAD: dict[str, Callable[[Path, pytest.MonkeyPatch], object]] = {
    "a folder that the group may write": lambda folder, _: folder.chmod(0o770),
    "a folder that anybody may write": lambda folder, _: folder.chmod(0o1777),
    "a file that the group may write": lambda folder, _: (folder / NAME).chmod(0o770),
    "a file that anybody may write": lambda folder, _: (folder / NAME).chmod(0o602),
    "somebody else's folder": others,
    "somebody else's file": lambda folder, patch: others(folder / NAME, patch),
}


@pytest.mark.parametrize("what", BAD)
def test_what_others_may_have_written_is_neither_used_nor_changed(
    cache: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    plant(cache / NAME)
    BAD[what](cache, monkeypatch)
    with pytest.raises(cpu_cache.Untrusted, match=r"cache/vggt-int8.*may hold code of others"):
        open_checked(cache / NAME)
    monkeypatch.setattr(cpu_cache, "_in_folder", in_private_folder_as_its_owner(monkeypatch))
    with pytest.warns(RuntimeWarning, match=r"may hold code of others.* compiled anew for this process alone"):
        path = kept_or_made(NAME, make)
    assert path.read_bytes() == _sealed(b"ours")
    assert path.parent.parent == cache.parents[1] / "temporary"
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert (cache / NAME).read_bytes() == _sealed(b"planted")


def in_private_folder_as_its_owner(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`_in_folder`, for which a test that played another user is itself again in the second folder."""
    real, calls, uid = cpu_cache._in_folder, [], os.stat("/proc/self").st_uid

    def in_folder(*args: object) -> Path:
        if calls:
            monkeypatch.setattr(cpu_cache.os, "geteuid", lambda: uid)
        calls.append(args)
        return real(*args)

    return in_folder


def test_a_link_of_another_user_is_not_followed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One's own may lead to a larger disk."""
    plant(cache.parents[1] / "disk" / NAME)
    cache.parent.mkdir()
    cache.symlink_to(cache.parents[1] / "disk")
    assert kept_or_made(NAME, make) == cache / NAME
    if os.geteuid() == 0:
        others(cache, monkeypatch)
        with pytest.warns(RuntimeWarning, match="may hold code of others"):
            assert kept_or_made(NAME, make).parent != cache


def test_a_file_that_is_a_link_or_a_pipe_is_not_opened(cache: Path) -> None:
    plant(cache / "elsewhere.so")
    (cache / NAME).symlink_to(cache / "elsewhere.so")
    with pytest.warns(RuntimeWarning, match="cannot be used"):
        assert kept_or_made(NAME, make).parent != cache
    (cache / NAME).unlink()
    os.mkfifo(cache / NAME, 0o700)
    with pytest.raises(ValueError, match="is damaged"):
        open_checked(cache / NAME)


def test_a_damaged_file_is_made_anew(cache: Path) -> None:
    plant(cache / NAME)
    with (cache / NAME).open("r+b") as file:
        file.truncate(10)
    with pytest.raises(ValueError, match="is damaged"):
        open_checked(cache / NAME)
    with warnings.catch_warnings(action="error"):
        assert kept_or_made(NAME, make).read_bytes() == _sealed(b"ours")


def test_no_place_for_a_cache(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A full disk, a file where the folder would be, no home; what was made elsewhere goes when the process ends."""
    removals: list[tuple[object, ...]] = []
    monkeypatch.setattr(atexit, "register", lambda *args, **_: removals.append(args))

    def full(path: Path) -> None:
        if cache in path.parents:
            raise OSError(28, os.strerror(28), str(path))
        make(path)

    with pytest.warns(RuntimeWarning, match=r"cannot be used \(No space left on device\).*XDG_CACHE_HOME.*anew"):
        path = kept_or_made(NAME, full)
    assert [args[1] for args in removals] == [str(path.parent)]
    assert list(cache.iterdir()) == []
    cache.rmdir()
    cache.touch()
    with pytest.warns(RuntimeWarning, match=r"vggt-int8 cannot be used \((File exists|Not a directory)\)"):
        kept_or_made(NAME, make)

    def homeless() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.warns(RuntimeWarning, match="no home: name a folder for the compiled kernels in XDG_CACHE_HOME"):
        kept_or_made(NAME, make)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert kept_or_made(NAME, make) == tmp_path / ".cache" / "vggt-int8" / NAME


@pytest.mark.skipif(compiled.unavailable() is not None, reason=str(compiled.unavailable()))
def test_code_that_was_planted_does_not_run(cache: Path, tmp_path: Path) -> None:
    """It writes a file when it is loaded, as it is from a folder of one's own."""
    source = tmp_path / "planted.c"
    source.write_text(
        '#include <stdio.h>\n__attribute__((constructor)) static void ran(void) {fclose(fopen("'
        + str(tmp_path / "ran")
        + '", "w"));}\n'
    )
    cache.mkdir(parents=True)
    subprocess.run([*compiler._compiler(), "-shared", "-fPIC", source, "-o", cache / NAME], check=True)
    (cache / NAME).write_bytes(_sealed((cache / NAME).read_bytes()))
    cache.chmod(0o777)
    with pytest.raises(compiler.NoCompiler, match="may hold code of others"):
        compiled.load(cache / NAME, amx=False)
    assert not (tmp_path / "ran").exists()
    cache.chmod(0o700)
    (cache / NAME).chmod(0o700)
    ctypes.CDLL(f"/proc/self/fd/{open_checked(cache / NAME)}")
    assert (tmp_path / "ran").exists()


def test_a_compiler_ends_with_us(tmp_path: Path) -> None:
    """Its children as well, whose end the pipe tells: they have the other side of it."""
    sleeper = tmp_path / "compiler"
    sleeper.write_text("#!/bin/sh\nsleep 60 &\nsleep 60\n")
    sleeper.chmod(0o755)
    read, write = os.pipe()
    os.set_inheritable(write, True)

    class Alarm(BaseException):
        pass

    real = subprocess.Popen.communicate

    def communicate(self: "subprocess.Popen[str]", *args: object, **kwargs: object) -> None:
        raise Alarm

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "communicate", communicate)
        patch.setattr(subprocess, "Popen", lambda *a, **k: _popen(*a, **k, pass_fds=[write]))
        with pytest.raises(Alarm):
            compiler._run([str(sleeper)])
    assert subprocess.Popen.communicate is real
    os.close(write)
    assert os.read(read, 1) == b""
    os.close(read)


_popen = subprocess.Popen
