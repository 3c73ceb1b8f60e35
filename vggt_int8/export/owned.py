"""Which files in a folder an earlier run of this program wrote: exactly those that its report.json lists.

The list determines what `--overwrite` may replace, so a report is only trusted if it is complete and by this program.
"""

import json
import os
import stat
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from vggt_int8.export.repeat import readable
from vggt_int8.files import write_json

REPORT = "report.json"
PROGRAM = "vggt-int8"
LARGEST_REPORT = 256 * 2**20  # bytes; a million images need some 200 MB


def write_report(
    folder: Path,
    command: str,
    document: dict[str, Any],
    format_of: Callable[[str], str | None] | None = None,
) -> dict[str, Any]:
    """report.json of a finished folder: `document`, the command that wrote it, and all files below, itself included.

    format_of: of a file (relative, with `/`), the format that it is of; then "written" lists formats and bytes, too.
    Returns what it wrote.
    """
    return extend_report(folder, command, document, [], format_of)


def extend_report(
    folder: Path,
    command: str,
    document: dict[str, Any],
    others: Sequence[dict[str, Any]],
    format_of: Callable[[str], str | None] | None,
) -> dict[str, Any]:
    """`write_report` in a folder whose files will be put beside `others`, entries of "written" in an earlier report."""
    here = sorted(
        (Path(parent) / name).relative_to(folder).as_posix() for parent, _, names in os.walk(folder) for name in names
    )
    plain = [file for file in here if not (folder / file).is_symlink()]
    files = sorted({*plain, *(entry["file"] for entry in others if "link" not in entry), REPORT})
    whole = {**document, "program": PROGRAM, "command": command, "files": files}
    if format_of is not None:
        new = [_entry(folder, file, format_of(file)) for file in here if file != REPORT]
        whole["written"] = sorted([*others, *new], key=lambda entry: entry["file"])
    write_json(folder / REPORT, whole)
    return whole


def _entry(folder: Path, file: str, kind: str | None) -> dict[str, Any]:
    path = folder / file
    entry = {"file": file, "format": kind, "bytes": path.lstat().st_size}
    return {**entry, "link": readable(os.readlink(path))} if path.is_symlink() else entry


def owned_files(folder: Path, command: str | tuple[str, ...]) -> set[str]:
    """The files (relative, with `/`) that `command`, or one of several, wrote into `folder` by its report there, and
    links as "name -> target"; none without such.

    Warns of a report.json that tells of none, and why not.
    """
    path, commands = folder / REPORT, (command,) if isinstance(command, str) else command
    try:
        document = _read(path)
        return {*_files_of(document, commands), *_links_of(document)}
    except (FileNotFoundError, NotADirectoryError):  # `folder` may be a file, of which whoever writes there tells
        return set()
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
    except RecursionError:
        reason = "is nested too deep for a report"
    except ValueError as error:
        reason = str(error)
    warnings.warn(
        f"{path} {reason}. So nothing in {folder} counts as results of {PROGRAM} {' or '.join(commands)}, which it "
        "may replace: if they are, remove them by hand, or choose another folder",
        stacklevel=2,
    )
    return set()


def _read(path: Path) -> Any:
    """What a report holds. Raises ValueError that says, after its name, why it is none; OSError."""
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        kinds = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder"}
        raise ValueError(f"is {kinds.get(stat.S_IFMT(found.st_mode), 'a device')}, not a file")
    if found.st_size > LARGEST_REPORT:
        raise ValueError(f"has {found.st_size} bytes, and no report has more than {LARGEST_REPORT}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"is not a whole JSON file ({error})") from error


def _files_of(document: Any, commands: tuple[str, ...]) -> list[str]:
    """The list of files in a report. Raises ValueError as `_read`."""
    if not isinstance(document, dict) or document.get("program", PROGRAM) != PROGRAM:
        raise ValueError(f"was not written by {PROGRAM}")
    if (other := document.get("command", commands[0])) not in commands:
        raise ValueError(f"is of another command, {other!r:.40}")
    files = document.get("files")
    if "files" not in document or not {"program", "command"} <= document.keys():
        raise ValueError("does not list the files that were written, as reports of early versions did not")
    if not isinstance(files, list) or not all(map(_is_inside, files)):
        raise ValueError("lists files that are not in its folder")
    return files


def _links_of(document: dict[str, Any]) -> list[str]:
    """The links in a report, as "name -> target"."""
    written = document.get("written", [])
    entries = [entry for entry in written if isinstance(entry, dict)] if isinstance(written, list) else []
    return [
        f"{entry['file']} -> {entry['link']}" for entry in entries if "link" in entry and _is_inside(entry.get("file"))
    ]


def _is_inside(name: Any) -> bool:
    """Whether a name stays below the folder that it is relative to."""
    if not isinstance(name, str) or not name or name.startswith("/"):
        return False
    return PurePosixPath(name).as_posix() == name and ".." not in PurePosixPath(name).parts
