"""Whole files or none: text, bytes and JSON, written under a hidden name and renamed; and lines appended to a log."""

import errno
import json
import os
import re
import secrets
import stat
from os import PathLike
from pathlib import Path
from typing import Any

from vggt_int8.disk import naming
from vggt_int8.files.hidden import is_at, lock, partial_name, real_path, sweep
from vggt_int8.plain_data import finite


def write_whole(path: str | PathLike[str], content: str | bytes) -> None:
    """Write a file (text as UTF-8) that appears, or takes the place of the one before, when it is complete.

    A link stays a link, and an existing file keeps its mode. Raises OSError, naming the file; then what was there
    before is whole.
    """
    path = real_path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder, a file is needed", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path)
    while True:
        temporary = path.with_name(partial_name(path.name, secrets.token_hex(4)))
        with naming(path):
            file = temporary.open("xb")
        lock(file.fileno(), wait=True)
        if is_at(temporary, file.fileno()):
            break
        file.close()  # somebody swept it before it was locked
    try:
        with naming(path), file:
            file.write(content.encode() if isinstance(content, str) else content)
            if path.exists():
                os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode))
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the new name without its content
            temporary.replace(path)  # while it is locked: else a writer of the same file sweeps it away just before
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | PathLike[str], document: Any) -> None:
    """`write_whole` of strict JSON (no NaN or Infinity), indented, a list of numbers on one line."""
    write_whole(path, _text(_indented(document, "\n")) + "\n")


def append_json_line(path: str | PathLike[str], document: Any) -> None:
    """Add a document to a file of JSON lines, which is made if need be: strict JSON, null for NaN and infinities.

    A line that a kill has cut off before stays a line of its own. Raises OSError, naming the file.
    """
    path = Path(path)
    line = _text(json.dumps(finite(document), ensure_ascii=False, allow_nan=False)) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path), path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else "\n" + line
        file.write(line.encode())


def sync(path: str | PathLike[str]) -> None:
    """Content of a file, or names in a folder, onto the disk: a power cut finds them there."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _indented(document: Any, line: str) -> str:
    """JSON as of `json.dumps(indent=2)`, which holds the interpreter's lock ten times as long as its encoder in C does.

    line: a line break and the indent of this document.
    """
    within = line + "  "
    if isinstance(document, dict) and document:
        items = []
        for key, item in document.items():
            name = key if isinstance(key, str) else _compact(key)
            items.append(f"{_compact(name)}: {_indented(item, within)}")
        return "{" + within + f",{within}".join(items) + line + "}"
    if isinstance(document, list | tuple) and any(isinstance(item, str | dict | list | tuple) for item in document):
        return "[" + within + f",{within}".join(_indented(item, within) for item in document) + line + "]"
    return _compact(document)


def _compact(document: Any) -> str:
    return json.dumps(document, ensure_ascii=False, allow_nan=False)


def _text(document: str) -> str:
    """A file's name that is no UTF-8 holds lone surrogates. Escaped, they are JSON, and read back as they were."""
    return re.sub("[\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", document)
