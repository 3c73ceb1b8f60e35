"""The log of a run: `log.jsonl`, a line of strict JSON per entry.

An entry has its "kind" ("start", "train", "validation") and the "step" it tells of. Numbers that are not
finite are null.
"""

import errno
import json
from pathlib import Path
from typing import Any

from vggt_int8.disk import check_place

LOG = "log.jsonl"


def check_run_folder(folder: Path) -> None:
    """Raise OSError, naming it, if a run cannot be written to `folder`, or would add to a log that is no run's."""
    check_place(folder)
    log = folder / LOG
    if log.exists():
        check_place(log)
        with log.open("rb") as file:
            start = file.readline(2**20)
        if start and not start.startswith(b'{"kind": "'):
            raise FileExistsError(errno.EEXIST, "is there and is no training's log: name another --out", str(log))


def read_log(log: Path) -> list[dict[str, Any]]:
    """All entries, in order; null and, of logs that earlier versions wrote, NaN and infinities are None.

    Raises ValueError that names the line which is no entry.
    """
    try:
        text = log.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{log} is no text in UTF-8: {error}") from error
    entries = []
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            entry = json.loads(line, parse_constant=lambda _: None) if line.strip() else None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{log}, line {number}: {error}; a run that was killed may leave half a line") from error
        if entry is None:
            continue
        if not isinstance(entry, dict) or not isinstance(entry.get("step"), int) or "kind" not in entry:
            raise ValueError(f"{log}, line {number}, is no entry of a training's log: it has no kind and step")
        entries.append(entry)
    return entries
