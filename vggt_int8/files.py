"""Whole files and whole folders, or none: everything is written under a hidden name first, then renamed.

The hidden name is `.NAME.partial-xxxxxxxx`, inside the target where that is a folder already, else beside it. Its
descriptor is locked (`flock`) for as long as the writer lives. What a kill leaves behind is therefore known by its
free lock, and the next writer of the same target sweeps it away, however long ago that was and whoever else writes.
"""

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import Any

from vggt_int8.disk import check_place, naming
from vggt_int8.exchange import JOURNAL, exchange, foreign_below, not_ours, roll_back
from vggt_int8.interrupts import uninterrupted

OLD_SECONDS = 7 * 86400.0  # without locks: what nobody has touched for so long is dead
_ANY = r"(?s:\..+\.partial-[0-9a-f]{8})"  # of any target: the folder may have been renamed since
_SAVING = r"\.saving-[a-z0-9_]{8}"  # inside a target: what saves were called before


@contextmanager
def staged_folder(
    out: str | PathLike[str],
    *,
    entries: Collection[str] | Callable[[], Collection[str]],
    overwrite: bool | None = False,
    owned: Callable[[Path], Collection[str]] | None = None,
    needed: float = 0,
) -> Iterator[Path]:
    """Give an empty folder to write into; on success its content becomes `out`, on any error nothing stays.

    entries: the names that this kind of output may have at its top level. The last of them tells that the output is
    complete: it is the first to go and the last to come. A function, if they depend on what is there, is asked
        when no other exchange is at work.
    overwrite: True replaces these in an existing folder, old ones that the new run lacks included, and leaves all
    other files alone. None: the caller offers no overwriting, so the message does not either.
    owned: of an existing folder, the files (relative, with `/`) that may be replaced, since this program wrote them.
    needed: roughly the bytes to come.

    A kill leaves the old content or the new one; or, between two renames, one without its last entry, which the next
    call for this `out` puts back to the old content.

    Raises FileExistsError if `out` is a file, or holds anything and `overwrite` is False, or has in one of the entries
    a file that is not owned; other OSErrors that name it where it cannot be written. The checks come first, so enter
    this before any long computation.
    """
    out = Path(out).expanduser()
    check_place(out)
    sweep(out)
    check_place(out, needed)  # once what a kill has left is gone
    known = entries if callable(entries) else lambda: entries
    _check_replaceable(out, known(), overwrite, owned)
    with staging_folder(out) as staging:
        new = staging / "new"
        new.mkdir()
        with naming(out):
            yield new
        unexpected = {path.name for path in new.iterdir()} - set(known())
        if unexpected:
            raise ValueError(f"{sorted(unexpected)} must be listed in entries {sorted(known())}")
        # An existing folder may be a mount point or someone's working directory: it is filled, never replaced.
        if staging.parent == _real(out):
            with _exchanging(staging.parent):
                _sweep_below(staging.parent, _left_by(staging.parent))  # another may have been killed meanwhile
                _check_replaceable(out, known(), overwrite, owned, but=staging)  # or have filled it
                exchange(staging, list(known()), set(owned(out)) if owned is not None else set())
            return
        try:
            new.rename(out)
        except OSError as error:
            raise FileExistsError(f"output {out} was made by something else meanwhile: {error.strerror}") from error


@contextmanager
def staging_folder(target: str | PathLike[str]) -> Iterator[Path]:
    """An empty hidden folder on the file system of `target`, locked while the block runs and gone after it.

    Inside `target` if that is a folder, else beside it, in parents that are made and, after an error, removed again.
    Sweeps first. What is to stay is renamed out of it by the caller.
    """
    target = _real(target)
    sweep(target)
    parent = target if target.is_dir() else target.parent
    made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    held: tuple[Path, int] | None = None
    try:
        with uninterrupted():
            parent.mkdir(parents=True, exist_ok=True)
            held = _make_locked(parent, target.name)
        yield held[0]
    finally:
        with uninterrupted():
            if held is not None:
                _remove(held[0])
                os.close(held[1])
            for folder in made:
                with suppress(OSError):  # it holds something, so it stays
                    folder.rmdir()


def sweep(target: str | PathLike[str]) -> None:
    """Remove what killed writers of `target` have left beside and inside it, and undo an exchange that was cut short.

    Nothing of another user, nothing behind a link, and nothing that a living process holds is touched.
    """
    target = _real(target)
    _sweep_below(target.parent, _left_by(target))
    inside = f"{_left_by(target)}|{_SAVING}"
    if _left_below(target, inside):
        with _exchanging(target):
            _sweep_below(target, inside)


def undo_exchange(folder: str | PathLike[str]) -> list[Path]:
    """Undo an exchange in a folder that was cut short there, for a reader: nothing is removed, nothing else is moved.

    Returns hidden folders of writers that stay as they are, since a process holds them, another user wrote them, or
    they came with the folder from elsewhere. Raises OSError where the folder cannot be changed.
    """
    folder = _real(folder)
    others: list[Path] = []
    if not _left_below(folder):
        return others
    with _exchanging(folder):
        for path in _left_below(folder):
            with _if_dead(path) as dead:
                if not dead or not path.is_dir() or not roll_back(path):
                    others.append(path)
    return others


def write_whole(path: str | PathLike[str], content: str | bytes) -> None:
    """Write a file (text as UTF-8) that appears, or takes the place of the one before, when it is complete.

    A link stays a link, and an existing file keeps its mode. Raises OSError, naming the file; then what was there
    before is whole.
    """
    path = _real(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder, a file is needed", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path)
    while True:
        temporary = path.with_name(_partial_name(path.name, secrets.token_hex(4)))
        with naming(path):
            file = temporary.open("xb")
        _lock(file.fileno(), wait=True)
        if _is_at(temporary, file.fileno()):
            break
        file.close()  # somebody swept it before it was locked
    try:
        with naming(path), file:
            file.write(content.encode() if isinstance(content, str) else content)
            if path.exists():
                os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode))
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the new name without its content
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | PathLike[str], document: Any) -> None:
    """`write_whole` of strict JSON (no NaN or Infinity), indented, a list of numbers on one line."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # A file's name that is no UTF-8 holds lone surrogates. Escaped, they are JSON, and read back as they were.
    text = re.sub("[\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)
    # Strings hold no raw newline and the pattern no quote, so only lists of numbers and null can match.
    text = re.sub(r'\[\n[^\[\]{}"]*\]', lambda match: re.sub(r"\n *", "", match[0]).replace(",", ", "), text)
    write_whole(path, text)


def _real(path: str | PathLike[str]) -> Path:
    """Absolute, with `~` and links resolved: one spelling per target."""
    return Path(os.path.realpath(Path(path).expanduser()))


@contextmanager
def _exchanging(folder: Path) -> Iterator[None]:
    """One at a time: exchanges in a folder, and what undoes them. They are renames, so nobody waits for long."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)


def _left_below(folder: Path, pattern: str = _ANY) -> list[Path]:
    try:
        return sorted(folder / entry.name for entry in os.scandir(folder) if re.fullmatch(pattern, entry.name))
    except OSError:  # no folder, or none that may be listed: nothing to sweep here
        return []


def _sweep_below(folder: Path, pattern: str) -> None:
    for path in _left_below(folder, pattern):
        _remove_dead(path)


def _left_by(target: Path) -> str:
    """Pattern of the hidden names that writers of a target use."""
    return _partial_name(target.name, "[0-9a-f]{8}", re.escape)


def _partial_name(name: str, suffix: str, spell: Callable[[str], str] = str) -> str:
    """`.NAME.partial-SUFFIX`, NAME cut so that it fits into the 255 bytes of a name."""
    while len(os.fsencode(name)) > 200:
        name = name[:-1]
    return f"{spell(f'.{name}.partial-')}{suffix}"


def _make_locked(parent: Path, name: str) -> tuple[Path, int]:
    """A new hidden folder and its locked descriptor; another one if somebody swept it before it was locked."""
    while True:
        staging = parent / _partial_name(name, secrets.token_hex(4))
        staging.mkdir(mode=0o700)
        try:
            descriptor = os.open(staging, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        _lock(descriptor, wait=True)
        if _is_at(staging, descriptor):
            return staging, descriptor
        os.close(descriptor)


def _lock(descriptor: int, *, wait: bool = False) -> bool | None:
    """True: locked by us now; False: another process holds it; None: there are no locks on this file system.

    Such are NFS, whose locks want a descriptor that is open for writing, and some FUSE. Where several machines share
    a file system that keeps its locks to each machine, only targets that they write at once are at risk.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _remove_dead(path: Path) -> None:
    """Remove a hidden folder or file if nobody holds it."""
    with _if_dead(path) as dead:
        if dead and path.is_dir():
            _remove(path)
        elif dead:
            path.unlink()


@contextmanager
def _if_dead(path: Path) -> Iterator[bool]:
    """Whether a hidden folder or file is the user's own and nobody holds it; if so, it is held while the block runs."""
    descriptor = _open_own(path)
    if descriptor is None:
        yield False
        return
    try:
        locked = _lock(descriptor)
        dead = time.time() - _last_change(path) > OLD_SECONDS if locked is None else locked
        yield dead and _is_at(path, descriptor)
    finally:
        os.close(descriptor)


def _open_own(path: Path) -> int | None:
    try:
        found = path.lstat()
        if found.st_uid != os.geteuid() or not (stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode)):
            return None
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # gone meanwhile, or made unreadable by its owner: not ours to judge
        return None


def _last_change(path: Path) -> float:
    """Newest modification below, seconds since the epoch."""
    return max(entry.lstat().st_mtime for entry in (path, *path.rglob("*")) if os.path.lexists(entry))


def _check_replaceable(
    out: Path,
    entries: Collection[str],
    overwrite: bool | None,
    owned: Callable[[Path], Collection[str]] | None,
    but: Path | None = None,
) -> None:
    """Raise FileExistsError unless `staged_folder` may put `entries` into `out`, whose entry `but` does not count."""
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"output {out} is a file, a folder is needed: choose another name")
    if not out.exists() or not (found := {path.name for path in out.iterdir()} - {but and but.name}):
        return
    if not overwrite:
        way_out = "" if overwrite is None else ", or overwrite it (--overwrite, overwrite=True)"
        raise FileExistsError(f"output folder {out} is not empty: choose another one{way_out}")
    foreign = foreign_below(out, sorted(found & set(entries)), set() if owned is None else set(owned(out)))
    if foreign:
        raise not_ours(out, foreign)


def _remove(staging: Path) -> None:
    """A hidden folder, unless it holds old content that cannot go back. What cannot be removed is the next sweep's."""
    if roll_back(staging):
        (staging / JOURNAL).unlink(missing_ok=True)  # first: what is left of `new` must not look like an exchange
        shutil.rmtree(staging, ignore_errors=True)
