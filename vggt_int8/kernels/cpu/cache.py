"""Keeps compiled kernels where nobody else can have written them, since loading a library runs its code.

They are in the user's cache, in a folder and files that belong to the user (or root) and that nobody else can write. A
file is checked through its open descriptor, and that descriptor is what is loaded, so concurrent changes to its path
have no effect. If the cache cannot be used or trusted, kernels are compiled for this process only, in a private
temporary folder; a warning says why.
"""

import atexit
import functools
import hashlib
import os
import shutil
import stat
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

from vggt_int8.files import whole_file

_DIGEST_BYTES = hashlib.sha256().digest_size


class Untrusted(Exception):
    """Others could have written the file or folder; the message says how."""


def kept_or_made(name: str, make: Callable[[Path], None]) -> Path:
    """Path of the complete library `name`, in the user's cache or else in a temporary folder of this process.

    make: compiles it to the given path. Raises what that raises, and OSError if there is no usable folder at all.
    """
    try:
        return _in_folder(_cache_folder(), name, make)
    except (OSError, Untrusted) as error:
        message = f"{error}. The CPU kernels are compiled anew for this process alone, in a temporary folder"
    path = _in_folder(_private_folder(), name, make)
    warnings.warn(message, RuntimeWarning, stacklevel=2)
    return path


def open_checked(path: Path) -> int:
    """Descriptor of a complete library that nobody else can have written.

    Raises `Untrusted`, FileNotFoundError and other OSErrors, or ValueError if the file is corrupted.
    """
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _check(path.parent, os.fstat(folder))
        # O_NONBLOCK: do not wait for a writer if it is a pipe.
        descriptor = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    finally:
        os.close(folder)
    try:
        found = os.fstat(descriptor)
        _check(path, found)
        content = os.pread(descriptor, found.st_size, 0) if stat.S_ISREG(found.st_mode) else b""
        if content != _sealed(content[:-_DIGEST_BYTES]):
            raise ValueError(f"{path} is damaged")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _in_folder(folder: Path, name: str, make: Callable[[Path], None]) -> Path:
    path = folder / name
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check(folder, folder.stat())
        if folder.is_symlink():
            _check_owner(folder, folder.lstat())
        try:
            os.close(open_checked(path))
        except (FileNotFoundError, ValueError):  # not there yet, or cut short by a full disk
            with whole_file(path) as made:
                make(made)
                made.write_bytes(_sealed(made.read_bytes()))
                made.chmod(0o700)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(f"{folder} cannot be used ({reason}): name another place in XDG_CACHE_HOME") from error
    return path


def _cache_folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(cache):  # a relative one is to be ignored, says the XDG Base Directory Specification
        return Path(cache) / "vggt-int8"
    try:
        return Path.home() / ".cache" / "vggt-int8"
    except RuntimeError as error:  # a user without a home
        raise OSError(f"{error}: name a folder for the compiled kernels in XDG_CACHE_HOME") from error


@functools.cache
def _private_folder() -> Path:
    """Created for this process with mode 0700, and removed at exit."""
    folder = tempfile.mkdtemp(prefix="vggt-int8-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _check(path: Path, found: os.stat_result) -> None:
    _check_owner(path, found)
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.S_IMODE(found.st_mode)
        raise Untrusted(
            f"{path} may hold code of others, who may write to it (mode {mode:o}): remove it, and it is made with 700"
        )


def _check_owner(path: Path, found: os.stat_result) -> None:
    if found.st_uid not in (os.geteuid(), 0):
        raise Untrusted(f"{path} may hold code of others: it belongs to user {found.st_uid}, not {os.geteuid()}")


def _sealed(library: bytes) -> bytes:
    """A library with its digest appended, where loaders ignore it: loading a corrupted library can crash the
    process.
    """
    return library + hashlib.sha256(library).digest()
