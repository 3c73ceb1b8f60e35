"""Exchanges files of a folder for new ones by renames only, so that an interrupted exchange can be undone.

The new files are in `staging/new`, inside the folder; the old ones go to `staging/old`. A journal beside these lists
the new entries. It is only trusted where it was written: folders travel, as downloaded checkpoints do, with whatever
hidden folders somebody has put into them, and a copy has other inode numbers than the journal states.
"""

import json
import os
import stat
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vggt_int8.listing import first_few

JOURNAL = "exchange.json"
_MOST = 2**20  # bytes of a journal: some 20,000 files


def exchange(staging: Path, entries: list[str], ours: set[str]) -> None:
    """Swap `staging/new` and the entries of the folder that `staging` is in.

    The last entry goes first and comes last. After an error all is as it was; FileExistsError is one, if a file that
    is not ours has come between. Two at once in one folder are for the caller to prevent.
    """
    out, new, old = staging.parent, staging / "new", staging / "old"
    names = [name for name in entries if os.path.lexists(new / name)]
    content = {"folder": staging.lstat().st_ino, "new": {name: (new / name).lstat().st_ino for name in names}}
    with (staging / f"{JOURNAL}.new").open("x", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())  # before the first rename that it tells of
    (staging / f"{JOURNAL}.new").replace(staging / JOURNAL)
    old.mkdir()
    try:
        for name in reversed(entries):
            if os.path.lexists(out / name):
                (out / name).rename(old / name)
        if foreign := foreign_below(old, os.listdir(old), ours):
            raise not_ours(out, foreign)
        for name in names:
            (new / name).rename(out / name)
    except BaseException:
        roll_back(staging)
        raise


def roll_back(staging: Path) -> bool:
    """Undo an exchange that was cut short. False: it is none of ours, or something has taken the old content's place.

    The state of the folders says how far it got, so this may be cut short as well.
    """
    out, new, old = staging.parent, staging / "new", staging / "old"
    if not os.path.lexists(staging / JOURNAL):
        return True
    moved = _read(staging)
    if moved is None or new.is_symlink() or old.is_symlink():
        warnings.warn(f"{staging} is left as it is: what its {JOURNAL} tells did not happen here", stacklevel=2)
        return False
    if not moved or not os.path.lexists(new / list(moved)[-1]):
        return True  # it was complete
    for name, number in moved.items():
        if not os.path.lexists(new / name) and os.path.lexists(out / name) and (out / name).lstat().st_ino == number:
            (out / name).rename(new / name)
    if not old.is_dir():
        return True
    for name in sorted((path.name for path in old.iterdir()), key=lambda name: name == list(moved)[-1]):
        if os.path.lexists(out / name):
            warnings.warn(f"{out / name} is in the way of an earlier one, kept as {old / name}", stacklevel=2)
            return False
        (old / name).rename(out / name)
    return True


def _read(staging: Path) -> dict[str, int] | None:
    """The new entries by name, with their inode numbers; None if the journal was not written here by `exchange`."""
    try:
        found = (staging / JOURNAL).lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > _MOST:
            return None
        content: Any = json.loads((staging / JOURNAL).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or content.get("folder") != staging.lstat().st_ino:
        return None
    moved = content.get("new")
    if not isinstance(moved, dict) or not all(isinstance(number, int) for number in moved.values()):
        return None
    return moved if all(name == Path(name).name not in ("", "..") for name in moved) else None


def not_ours(out: Path, foreign: list[str]) -> FileExistsError:
    """The error for files in the way that no earlier run wrote."""
    return FileExistsError(
        f"output folder {out} holds what the report of no earlier run lists as its own: "
        f"{first_few(foreign)}. Nothing was replaced: move it away, or choose another folder"
    )


def foreign_below(folder: Path, entries: Iterable[str], ours: set[str]) -> list[str]:
    """What lies at or below `entries` of a folder and is not ours: a file by its name, a link by "name -> target".

    Links are not followed.
    """
    foreign: list[str] = []
    for entry in entries:
        path = folder / entry
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            foreign += foreign_below(folder, (f"{entry}/{name}" for name in sorted(os.listdir(path))), ours)
        elif stat.S_ISLNK(mode) and f"{entry} -> {os.readlink(path)}" in ours:
            continue
        elif not stat.S_ISREG(mode) or entry not in ours:
            foreign.append(entry)
    return foreign
