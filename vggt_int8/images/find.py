"""Files, folders, patterns and file:// URIs -> image files, with a warning about everything that is not used."""

import errno
import glob
import os
import re
import stat
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

from vggt_int8.encoding import one_line
from vggt_int8.images.formats import IMAGE_SUFFIXES, image_suffixes, is_misnamed, words_for
from vggt_int8.images.names import natural_key, order_warning, some_names
from vggt_int8.images.outputs import OwnPictures
from vggt_int8.listing import first_few

Source = str | PathLike[str]

_URL = re.compile(r"[a-z][a-z0-9+.-]+:/|data:", re.IGNORECASE)  # Path() makes one slash of two
_FOLDER, _OWN, _HIDDEN, _BROKEN = "folder inside", "picture that vggt-int8 wrote", "hidden file", "broken link"
_SPECIAL, _FORBIDDEN, _BARE = "pipe, socket or device", "file without permission", "file without a suffix"
_PLURALS = {
    _FOLDER: "folders inside",
    _OWN: "pictures that vggt-int8 wrote",
    _HIDDEN: "hidden files",
    _BROKEN: "broken links",
    _SPECIAL: "pipes, sockets or devices",
    _FORBIDDEN: "files without permission",
    _BARE: "files without a suffix",
}
_REASONS_SHOWN, _NAMES_SHOWN, _FOLDERS_LOOKED_INTO = 12, 3, 50


def find_images(images: Source | Sequence[Source], *, stacklevel: int = 1) -> list[Path]:
    """Files, folders and glob patterns (one, or a list of them) -> image files. `~` and `file://` are expanded.

    A list keeps its order. The files of a folder or pattern come in natural order (`2.jpg` before `10.jpg`). Among
    them, only files with a suffix of a format that Pillow can read count; hidden files and images that this program
    wrote are skipped, and subfolders are not searched (a pattern with `**` searches them, each once). An existing name
    is taken literally, brackets included, also as the folder part of a pattern.

    Warns with counts and reasons about everything in a folder or pattern that is not used, about names whose natural
    order is not that of their values, and about files that are given twice. stacklevel: as in `warnings.warn`, 1 for
    the caller.

    Raises FileNotFoundError for a path or pattern without a file, ValueError for other URLs, folders without images and
    files that are not photographs, and TypeError for anything but paths.
    """
    sources = list(images) if isinstance(images, Iterable) and not isinstance(images, str | bytes) else [images]
    for source in sources:
        if not isinstance(source, str | PathLike):
            raise TypeError(f"images must be paths of files, folders or glob patterns; got a {type(source).__name__}")
    if not sources or "" in sources:  # an empty path would mean the current folder
        raise ValueError("no images given: pass at least one file, folder or glob pattern")
    found: list[Path] = []
    for source in sources:
        paths, remarks = _expand(source)
        found += paths
        for remark in remarks:
            warnings.warn(remark, stacklevel=stacklevel + 1)
    if twice := [path for path, count in Counter(found).items() if count > 1]:
        names = some_names(list(map(str, twice)), _NAMES_SHOWN)
        warnings.warn(f"files are given more than once, and used as often: {names}", stacklevel=stacklevel + 1)
    return found


def _expand(source: Source) -> tuple[list[Path], list[str]]:
    """The images of one source, and what there is to say about the rest."""
    path = Path(os.path.expanduser(_without_scheme(source)))
    if path.is_dir():
        return _only_images(list(path.iterdir()), f"folder {path}")
    if os.path.lexists(path):
        return [_one_file(path)], []
    there = next(folder for folder in path.parents if folder.is_dir() or folder == folder.parent)
    rest = path.relative_to(there)
    if not glob.has_magic(str(rest)):
        raise FileNotFoundError(f"no such image file or folder: {path}")
    matches = _matches(there, rest.parts)
    if not matches:
        raise FileNotFoundError(f"no file matches the pattern {path}")
    if "**" in path.parts:
        matches = [match for match in matches if not match.is_dir()] or matches  # their files are among the matches
    return _only_images(matches, f"pattern {path}")


def _matches(folder: Path, pattern: Sequence[str]) -> list[Path]:
    """Files and folders below an existing folder, whose own name may hold brackets. `**` enters each folder once."""
    if "**" not in pattern:
        return [Path(match) for match in glob.glob(str(Path(glob.escape(str(folder)), *pattern)))]
    at = list(pattern).index("**")
    roots = _matches(folder, pattern[:at]) if at else [folder]
    found = (_matches(inside, pattern[at + 1 :] or ["*"]) for root in roots for inside in _folders(root))
    by_place: dict[tuple[str, str], Path] = {}
    for path in (path for paths in found for path in paths):
        by_place.setdefault((os.path.realpath(path.parent), path.name), path)
    return list(by_place.values())


def _folders(root: Path) -> Iterator[Path]:
    """A folder and all inside of it but hidden ones, through links as well, which may lead back to where they are."""
    seen: set[tuple[int, int]] = set()
    for folder, inside, _ in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            inside.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        yield Path(folder)


def _without_scheme(source: Source) -> str:
    """The path of a file:// URI; other URLs raise; a path stays what it is."""
    text = os.fspath(source)
    if not _URL.match(text) or os.path.lexists(text):
        return text
    parts = urlsplit(text)
    if parts.scheme != "file":
        raise ValueError(f"{text} is a URL: download the images and pass the files or their folder")
    if parts.netloc not in ("", "localhost"):
        raise ValueError(f"{text} names the host {parts.netloc!r}: write file:///path, with three slashes")
    return os.fsdecode(unquote_to_bytes(parts.path))


def _one_file(path: Path) -> Path:
    """A file that the caller named itself."""
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(f"{path} is a broken link: it points to {os.readlink(path)}, which leads to no file")
    if path in OwnPictures():
        raise ValueError(f"{path} is no photograph: vggt-int8 wrote it (a map of depth or confidence)")
    return path


def _only_images(candidates: Sequence[Path], where: str) -> tuple[list[Path], list[str]]:
    suffixes, own = image_suffixes(), OwnPictures()
    found: list[Path] = []
    unused: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(candidates, key=natural_key):
        reason = _reason(path, suffixes, own)
        if reason is None:
            found.append(path)
        else:
            unused[reason].append(path)
    details = _details(unused)
    if not found:
        what = (
            f"only {', '.join(_PLURALS.get(reason, reason) for reason in _first(unused))}" if unused else "it is empty"
        )
        raise ValueError(
            f"{where} holds no images ({what}){f': {details}' if details else ''}; names must end in "
            f"{', '.join(IMAGE_SUFFIXES)} or another suffix of a format that Pillow reads"
        )
    remarks = []
    if unused:
        count = sum(map(len, unused.values()))
        remarks.append(f"{where}: {count} of {len(candidates)} entries are not used: {details}")
    if order := order_warning(found):
        remarks.append(order)
    return found, remarks


def _reason(path: Path, suffixes: frozenset[str], own: OwnPictures) -> str | None:
    """Why a file does not count; None if it does."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return _BROKEN if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR) else _FORBIDDEN
    if path.name.startswith("."):
        return _HIDDEN
    if stat.S_ISDIR(mode):
        return _FOLDER
    if not stat.S_ISREG(mode):
        return _SPECIAL
    if path.suffix.lower() not in suffixes and not is_misnamed(path):
        return path.suffix or _BARE
    return _OWN if path in own else None


def _first(unused: Mapping[str, list[Path]]) -> list[str]:
    """The reasons that are named: those of most files, in alphabetical order."""
    return sorted(sorted(unused, key=lambda reason: -len(unused[reason]))[:_REASONS_SHOWN])


def _details(unused: Mapping[str, list[Path]]) -> str:
    shown = _first(unused)
    rest = sum(len(paths) for reason, paths in unused.items() if reason not in shown)
    more = [f"{rest} of {len(unused) - len(shown)} other kinds"] if rest else []
    return "; ".join([*(_detail(reason, unused[reason]) for reason in shown), *more])


def _detail(reason: str, paths: list[Path]) -> str:
    """`2 .HEIC (a.HEIC, b.HEIC; HEIC/HEIF needs …)`."""
    describe = {_FOLDER: _describe_folder, _BROKEN: _describe_link}.get(reason, lambda path: path.name)
    names = one_line(first_few(paths, _NAMES_SHOWN, spell=describe))
    words = words_for(reason)
    what = reason if len(paths) == 1 else _PLURALS.get(reason, reason)
    return f"{len(paths)} {what} ({names}{f'; {words}' if words else ''})"


def _describe_folder(path: Path) -> str:
    """Its name, and where in it the first images lie: that is what to pass."""
    suffixes, own = image_suffixes(), OwnPictures()
    for looked, (folder, inside, files) in enumerate(os.walk(path)):
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        pictures = [Path(folder, name) for name in files if not name.startswith(".")]
        count = sum(picture.suffix.lower() in suffixes and picture not in own for picture in pictures)
        if count:
            return f"{path.name}: pass {folder} for {count} {'image' if count == 1 else 'images'}"
        if looked == _FOLDERS_LOOKED_INTO:
            break
    return path.name


def _describe_link(path: Path) -> str:
    return f"{path.name} -> {os.readlink(path)}" if path.is_symlink() else path.name
