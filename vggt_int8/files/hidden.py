"""Hidden names, `.NAME.partial-xxxxxxxx`: which are in use, and removal of those that are not.

The descriptor of such a file or folder is locked (`flock`) as long as its writer lives. What a kill leaves behind is
therefore recognized by its free lock, and the next writer of the same target removes it, however long ago that was and
whoever else writes.
"""

import fcntl
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

from vggt_int8.files.exchange import JOURNAL, roll_back

OLD_SECONDS = 7 * 86400.0  # without locks: what nobody has touched for so long is dead
_ANY = r"(?s:\..+\.partial-[0-9a-f]{8})"  # of any target: the folder may have been renamed since
_SAVING = r"\.saving-[a-z0-9_]{8}"  # inside a target: what saves were called before


def real_path(path: str | PathLike[str]) -> Path:
    """Absolute, with `~` and links resolved: one spelling per target."""
    return Path(os.path.realpath(Path(path).expanduser()))


def sweep(target: str | PathLike[str]) -> None:
    """Remove what killed writers of `target` have left beside and inside it, and undo an exchange that was cut short.

    Nothing of another user, nothing behind a link, and nothing that a living process holds is touched.
    """
    target = real_path(target)
    sweep_below(target.parent, left_by(target))
    inside = f"{left_by(target)}|{_SAVING}"
    if _left_below(target, inside):
        with exchanging(target):
            sweep_below(target, inside)


def undo_exchange(folder: str | PathLike[str]) -> list[Path]:
    """Undo an exchange in a folder that was cut short there, for a reader: nothing is removed, nothing else is moved.

    Returns hidden folders of writers that stay as they are, since a process holds them, another user wrote them, or
    they came with the folder from elsewhere. Raises OSError where the folder cannot be changed.
    """
    folder = real_path(folder)
    others: list[Path] = []
    if not _left_below(folder):
        return others
    with exchanging(folder):
        for path in _left_below(folder):
            with _if_dead(path) as dead:
                if not dead or not path.is_dir() or not roll_back(path):
                    others.append(path)
    return others


@contextmanager
def exchanging(folder: Path) -> Iterator[None]:
    """One at a time: exchanges in a folder, and what undoes them. They are renames, so nobody waits for long."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        lock(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)


def _left_below(folder: Path, pattern: str = _ANY) -> list[Path]:
    try:
        return sorted(folder / entry.name for entry in os.scandir(folder) if re.fullmatch(pattern, entry.name))
    except OSError:  # no folder, or none that may be listed: nothing to sweep here
        return []


def sweep_below(folder: Path, pattern: str) -> None:
    for path in _left_below(folder, pattern):
        _remove_dead(path)


def left_by(target: Path) -> str:
    """Pattern of the hidden names that writers of a target use."""
    return partial_name(target.name, "[0-9a-f]{8}", re.escape)


def partial_name(name: str, suffix: str, spell: Callable[[str], str] = str) -> str:
    """`.NAME.partial-SUFFIX`, NAME cut so that it fits into the 255 bytes of a name."""
    while len(os.fsencode(name)) > 200:
        name = name[:-1]
    return f"{spell(f'.{name}.partial-')}{suffix}"


def make_locked(parent: Path, name: str) -> tuple[Path, int]:
    """A new hidden folder and its locked descriptor; another one if somebody swept it before it was locked."""
    while True:
        staging = parent / partial_name(name, secrets.token_hex(4))
        staging.mkdir(mode=0o700)
        try:
            descriptor = os.open(staging, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        lock(descriptor, wait=True)
        if is_at(staging, descriptor):
            return staging, descriptor
        os.close(descriptor)


def lock(descriptor: int, *, wait: bool = False) -> bool | None:
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


def is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _remove_dead(path: Path) -> None:
    """Remove a hidden folder or file if nobody holds it."""
    with _if_dead(path) as dead:
        if dead and path.is_dir():
            remove(path)
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
        locked = lock(descriptor)
        dead = time.time() - _last_change(path) > OLD_SECONDS if locked is None else locked
        yield dead and is_at(path, descriptor)
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


def remove(staging: Path) -> None:
    """A hidden folder, unless it holds old content that cannot go back. What cannot be removed is the next sweep's."""
    if roll_back(staging):
        (staging / JOURNAL).unlink(missing_ok=True)  # first: what is left of `new` must not look like an exchange
        shutil.rmtree(staging, ignore_errors=True)
