"""Full, failing and forbidden disks, and folders of others: asked before long work where that is cheap, else named."""

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
    """Turn what the block raises for a full or failing disk into an OSError that names `path`.

    `write` says only "No space left on device"; safetensors and NumPy raise other errors, which say as little.
    hidden: where the content lies meanwhile; errors that name something in there name `path` instead.
    """
    try:
        yield
    except OSError as error:
        # Of a copy the first name is the file that is read.
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
    """Raise OSError, naming it, if nothing can be written at `path`: the cheap check before long work.

    Looks at what is there, or at the nearest folder above, and changes nothing. needed: roughly the bytes to come.
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
    """Raise OSError, naming it, if `folder` is a file, or there and not a folder of this package's `what`.

    names: what may lie in it, beside hidden files. first: of these the one that is written first, so it is there.
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


def _disk_error(error: Exception, path: str | PathLike[str]) -> int | None:
    """The number of a disk's error; None for any other."""
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
