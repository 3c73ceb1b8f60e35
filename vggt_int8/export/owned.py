"""Which files of a folder an earlier run of this program wrote: what its report.json lists, and nothing else.

That list decides what `--overwrite` may replace, so a report is believed only if it is whole and by this program.
"""

import json
import os
import stat
from pathlib import Path, PurePosixPath
from typing import Any

from vggt_int8.files import write_json

REPORT = "report.json"
PROGRAM = "vggt-int8"
LARGEST_REPORT = 256 * 2**20  # bytes; a million images need some 200 MB


def write_report(folder: Path, command: str, document: dict[str, Any]) -> dict[str, Any]:
    """report.json of a finished folder: `document`, the command that wrote it, and all files below, itself included.

    Returns what it wrote.
    """
    files = [
        (Path(parent) / name).relative_to(folder).as_posix() for parent, _, names in os.walk(folder) for name in names
    ]
    whole = {**document, "program": PROGRAM, "command": command, "files": sorted([*files, REPORT])}
    write_json(folder / REPORT, whole)
    return whole


def owned_files(folder: Path, command: str) -> set[str]:
    """The files (relative, with `/`) that `command` wrote into `folder` by its report there; none without such."""
    path = folder / REPORT
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > LARGEST_REPORT:
            return set()
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return set()
    if not isinstance(document, dict) or (document.get("program"), document.get("command")) != (PROGRAM, command):
        return set()
    files = document.get("files")
    return set(files) if isinstance(files, list) and all(map(_is_inside, files)) else set()


def _is_inside(name: Any) -> bool:
    """Whether a name stays below the folder that it is relative to."""
    if not isinstance(name, str) or not name or name.startswith("/"):
        return False
    return PurePosixPath(name).as_posix() == name and ".." not in PurePosixPath(name).parts
