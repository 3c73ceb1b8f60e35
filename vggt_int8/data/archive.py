"""Extract 7z archives from untrusted sources without writing outside the target folder or filling the disk.

The list of contents is checked before anything is extracted: only plain files and folders, with names below the target
that are unique on any file system, and no more bytes than expected. Each file is then written by this module to a
hidden folder, limited to its listed size, and moved to its final place. py7zr (the extra "data") is only used for
decompression.
"""

import os
import re
import unicodedata
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any

from vggt_int8.disk import check_place, naming
from vggt_int8.files import staging_folder
from vggt_int8.listing import first_few
from vggt_int8.plain_data import shown

MOST_ENTRIES = 1_000_000


class ArchiveError(ValueError):
    """A damaged or unsafe archive. The message states the problem."""


def unpack(archive: Path, target: Path, *, most_bytes: int, below: str = "") -> list[str]:
    """Extract a 7z archive below `target`, replacing files of the same names. Returns the names, with `/`.

    most_bytes: limit for the extracted size.
    below: the single folder that must contain all files.

    Raises `ArchiveError` without changing anything, and ImportError, with the package to install, without py7zr.
    """
    py7zr = _py7zr()
    try:
        with py7zr.SevenZipFile(archive) as opened:
            if opened.needs_password():
                raise ArchiveError(f"{archive} wants a password")
            sizes = _checked(archive, opened.list(), most_bytes, below)
            check_place(target, sum(sizes.values()))
            with staging_folder(target) as staging:
                with naming(target, staging):
                    names = _write(py7zr, opened, staging / "new", sizes, archive)
                for name in names:
                    _move(staging / "new" / name, target, name)
    except (ArchiveError, OSError):
        raise
    except Exception as error:  # py7zr raises what its decompressors do
        raise ArchiveError(
            f"{archive} is damaged, or no 7z archive: {type(error).__name__}: {shown(str(error))}"
        ) from error
    return names


def require() -> None:
    """Raise ImportError, with the package to install, if archives cannot be extracted. Called before a download."""
    _py7zr()


def _py7zr() -> Any:
    try:
        import py7zr
    except ImportError as error:
        raise ImportError("7z archives are unpacked by py7zr: pip install 'vggt-int8[data]'") from error
    return py7zr


def _checked(archive: Path, entries: Sequence[Any], most_bytes: int, below: str) -> dict[str, int]:
    """Name -> size in bytes of all files. Raises `ArchiveError` for entries that must not be extracted."""
    if len(entries) > MOST_ENTRIES:
        raise ArchiveError(f"{archive} lists {len(entries):,} files: no more than {MOST_ENTRIES:,} are unpacked")
    sizes: dict[str, int] = {}
    for entry in entries:
        if (why := _unwanted(entry, below)) is not None:
            raise ArchiveError(f"{archive} holds {shown(str(entry.filename))}, {why}: it is not unpacked")
        if not entry.is_directory:
            name = PurePosixPath(entry.filename).as_posix()  # as py7zr asks for it
            if name in sizes:
                raise ArchiveError(f"{archive} holds {shown(name)} more than once: it is not unpacked")
            sizes[name] = int(entry.uncompressed)
    if not sizes:
        raise ArchiveError(f"{archive} holds no files")
    total = sum(sizes.values())
    if total > most_bytes:
        raise ArchiveError(f"{archive} would unpack to {total:,} bytes; at most {most_bytes:,} are expected")
    _check_apart(archive, sizes)
    return sizes


def _unwanted(entry: Any, below: str) -> str | None:
    """Why an entry must not be extracted, as a clause; None if it may be."""
    if entry.is_symlink:
        return "which is a link"
    if not entry.is_directory and (not entry.is_file or str(entry.filename).endswith("/")):
        return "which is no plain file"
    if not _stays_inside(str(entry.filename)):
        return "a name that leaves its folder"
    if below and PurePosixPath(entry.filename).parts[0] != below:
        return f"which does not lie in {below}/"
    return None


def _check_apart(archive: Path, names: Collection[str]) -> None:
    """Raise `ArchiveError` if two names would be the same file, or a file and a folder, on a case-insensitive file
    system: those of macOS and Windows, and Linux folders with case folding.
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(_folded(name), name)
        if other != name:
            raise ArchiveError(
                f"{archive} holds {shown(other)} and {shown(name)}, one file where case does not count: it is not "
                "unpacked"
            )
    inside = {_folded(str(parent)) for name in names for parent in PurePosixPath(name).parents}
    if both := sorted(seen[name] for name in inside & seen.keys()):
        raise ArchiveError(f"{archive} holds {first_few(both)} as a file and as a folder: it is not unpacked")


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _stays_inside(name: str) -> bool:
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or re.search(r"[\\:\0]", name):
        return False
    return ".." not in parts and all(len(os.fsencode(part)) <= 255 for part in parts)


def _write(py7zr: Any, opened: Any, folder: Path, sizes: dict[str, int], archive: Path) -> list[str]:
    """Write all files of the archive below an own folder. py7zr writes into file objects provided by this module and
    never creates files itself.
    """
    folder.mkdir()
    root = Path(os.path.realpath(folder))

    class File(py7zr.io.Py7zIO):
        def __init__(self, name: str) -> None:
            self.name, self.left = name, sizes[name]
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            self.file: IO[bytes] = (root / name).open("xb+")

        def write(self, s: bytes | bytearray) -> int:
            self.left -= len(s)
            if self.left < 0:
                raise ArchiveError(f"{archive}: {shown(self.name)} is longer than the archive's list says")
            return self.file.write(s)

        def read(self, size: int | None = None) -> bytes:
            return self.file.read(-1 if size is None else size)

        def seek(self, offset: int, whence: int = 0) -> int:
            return self.file.seek(offset, whence)

        def flush(self) -> None:
            self.file.flush()

        def size(self) -> int:
            return os.fstat(self.file.fileno()).st_size

        def close(self) -> None:
            self.file.close()

    class Files(py7zr.io.WriterFactory):
        def create(self, filename: str) -> File:
            return File(Path(filename).relative_to(root).as_posix())

    opened.extract(path=root, factory=Files())
    for name, size in sizes.items():  # py7zr makes no file of a member without bytes
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() and not size:
            path.touch()
        if not path.is_file() or path.stat().st_size != size:
            raise ArchiveError(f"{archive}: {shown(name)} did not come out with its {size:,} bytes")
    return sorted(sizes)


def _move(path: Path, target: Path, name: str) -> None:
    """Move the files to their final place. The folders on the way are real folders below `target`, not links."""
    place = target / name
    place.parent.mkdir(parents=True, exist_ok=True)
    if not Path(os.path.realpath(place.parent)).is_relative_to(os.path.realpath(target)):
        raise ArchiveError(f"{place.parent} is a link that leads out of {target}: nothing is unpacked there")
    path.replace(place)
