"""Pictures that this program wrote: maps of depth and confidence are no photographs, wherever a pattern finds them.

Known by where they lie: in `depth/` or `confidence/`, or as `sheet.jpg`, beside the cameras.json or report.json of a
run, as the `depth.png` of a scene of the demo, or in a hidden folder into which a run was writing. Copies of
photographs for other programs, in `images/` and `images_N/` of a run or an export, would count twice.
"""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

_COPIES = re.compile(r"images(_\d+)?")
_STAGING = re.compile(r"\..+\.partial-[0-9a-f]{8}")


class OwnPictures:
    """Answers for files, remembering the folders that it has looked at."""

    def __init__(self) -> None:
        self._of_run = cache(_is_of_run)
        self._of_demo = cache(_is_of_demo)
        self._has_copies = cache(_has_copies)

    def __contains__(self, path: Path) -> bool:
        path = path.absolute()
        if any(_STAGING.fullmatch(folder) for folder in path.parts[:-1]):
            return True
        folder = path.parent
        if folder.name in ("depth", "confidence") and self._of_run(folder.parent):
            return True
        if path.name == "sheet.jpg" and self._of_run(folder):
            return True
        copies = next((parent for parent in path.parents if _COPIES.fullmatch(parent.name)), None)
        if copies is not None and self._has_copies(copies.parent):
            return True
        return path.name == "depth.png" and self._of_demo(folder.parent)


def _is_of_run(folder: Path) -> bool:
    report, cameras = _json(folder / "report.json"), _json(folder / "cameras.json")
    return {"format_version", "model", "outputs"} <= report.keys() or {"format_version", "convention"} <= cameras.keys()


def _has_copies(folder: Path) -> bool:
    report = _json(folder / "report.json")
    outputs = report.get("outputs")
    return report.get("program") == "vggt-int8" and isinstance(outputs, dict) and "images" in outputs


def _is_of_demo(folder: Path) -> bool:
    return {"format_version", "scenes", "rows"} <= _json(folder / "report.json").keys()


def _json(path: Path) -> dict[str, Any]:
    """A JSON file's object; empty if the file is missing, unreadable or something else: it is not ours then."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
