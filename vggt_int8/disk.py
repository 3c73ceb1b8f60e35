"""Full, failing and read-only disks, and other programs' folders: checked before long work if that is cheap, else named
in errors.
"""

import errno
import os
import re
import resource
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


@contextmanager
def naming(path: str | PathLike[str], hidden: Path | None = None) -> Iterator[None]:
    """Turn errors of a full or failing disk inside the block into an OSError that names `path`.

    `write` only says "No space left on device", and safetensors and NumPy raise other, equally vague errors. hidden:
    the temporary location of the content; errors that name something in it name `path` instead.
    """
    try:
        yield
    except OSError as error:
        # For a copy, the first name is the source file.
        names = [name for name in (error.filename, error.filename2) if name is not None]
        ours = hidden is not None and any(isinstance(name, str) and Path(name).is_relative_to(hidden) for name in names)
        if (names and not ours) or (number := _disk_error(error, path)) is None:
            raise
        raise OSError(number, os.strerror(number), os.fspath(path)) from error
    except Exception as error:
        if (number := _disk_error(error, path)) is None:
            raise
        raise OSError(number, os.strerror(number), os.fspath(path)) from error


def check_place(path: str | PathLike[str], needed: float = 0) -> None:
    """Raise OSError, naming it, if nothing can be written to `path`: a cheap check before long work.

    Checks the path, or the nearest existing parent, and changes nothing. needed: estimate of the bytes to be written.
    """
    path = Path(path).expanduser()
    if path.is_symlink() and not path.exists():
        raise FileExistsError(
            errno.EEXIST, f"is a link to nowhere ({os.readlink(path)}): choose another name", str(path)
        )
    place = next(place for place in (path, *path.absolute().parents) if place.exists())
    if place != path and not place.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"cannot be made, since {place} is a file", str(path))
    if not os.access(place, os.W_OK | (os.X_OK if place.is_dir() else 0)):
        raise PermissionError(errno.EACCES, f"cannot be written: {place} is not for you to write", str(path))
    free = shutil.disk_usage(place).free
    if free < needed:
        need = f"{needed / 1e6:,.1f} MB are needed and {free / 1e6:,.1f} MB free"
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: about {need}", str(path))


def check_own_folder(folder: Path, names: Collection[str], first: str, what: str) -> None:
    """Raise OSError, naming it, if `folder` is a file, or an existing folder that was not written by this package's
    `what`.

    names: its possible entries, beside hidden files.
    first: the entry that is written first, and therefore exists.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file, a folder is needed")
    found = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if foreign := [name for name in found if name not in names]:
        raise FileExistsError(f"{folder} is not empty, {foreign[0]!r} is no file of {what}: choose another --out")
    if found and first not in found:
        raise FileExistsError(f"{folder} holds {found[0]!r} and no {first}, so it is not ours: move it away")


def message_of(error: BaseException) -> str:
    """What an error says, on one line; an OSError says its file, if it has one, and the reason, without its number."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return " ".join(text.split())


def _disk_error(error: Exception, path: str | PathLike[str]) -> int | None:
    """The errno of a disk error; None for any other error."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in _DISK_ERRORS else None
    text = str(error)
    if (numbered := re.search(r"\(os error (\d+)\)", text)) and int(numbered[1]) in _DISK_ERRORS:  # safetensors
        return int(numbered[1])
    if os.strerror(errno.ENOSPC) in text:
        return errno.ENOSPC
    if (short := re.fullmatch(r"(\d+) requested and \d+ written", text)) is None:  # NumPy, in items
        return None
    place = next(place for place in (Path(path), *Path(path).absolute().parents) if place.exists())
    if shutil.disk_usage(place).free < int(short[1]):
        return errno.ENOSPC
    return errno.EIO if resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY else errno.EFBIG
