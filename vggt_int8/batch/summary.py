"""summary.json: every scene of a batch, what became of it, and how long it took; from the scenes' own reports."""

import json
import warnings
from pathlib import Path
from typing import Any

from vggt_int8.batch.board import REPORT, Board
from vggt_int8.batch.scenes import SceneFolder
from vggt_int8.images.formats import image_suffixes
from vggt_int8.images.names import portable_name

FORMAT = 1


def summarize(board: Board) -> dict[str, Any]:
    """JSON-ready, in the scenes' order. seconds: of all stages of a scene, whose sum is more than the time it took,
    since stages of several scenes run beside one another. images_changed: images were added, removed or renamed since;
    not whether their content did, and not for a video.
    """
    board.refresh()
    rows = [_row(board, scene) for scene in board.scenes]
    count = {status: sum(row["status"] == status for row in rows) for status in ("done", "failed", "open")}
    return {
        "format_version": FORMAT,
        "program": "vggt-int8",
        "command": "batch",
        "scenes": len(rows),
        "done": count["done"],
        "failed": count["failed"],
        "open": count["open"],
        "images": sum(row.get("images") or 0 for row in rows),
        "rows": rows,
    }


def _row(board: Board, scene: SceneFolder) -> dict[str, Any]:
    state = board.status(scene)
    row: dict[str, Any] = {"scene": scene.name, "status": state.status}
    if state.attempts:
        row |= {"attempts": len(state.attempts), "stage": state.attempts[-1]["stage"]}
        row |= {"error": state.attempts[-1]["error"]}
    if state.status != "done":
        return row
    path = board.out / scene.name / REPORT
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        names = {Path(entry["file"]).name for entry in report["inputs"]}
    except (ValueError, KeyError, TypeError) as error:
        told = f"{path} is damaged ({type(error).__name__}: {error}): remove {path.parent}, and it is done again"
        return {"scene": scene.name, "status": "failed", "attempts": 0, "stage": "report", "error": told}
    outputs, seconds = report.get("outputs") or {}, report.get("seconds") or {}
    counts = (outputs.get(kind) or {} for kind in ("points", "glb", "colmap", "transforms"))  # of ply: "points"
    points = next((count["written" if "written" in count else "points"] for count in counts if count), None)
    return {
        "scene": scene.name,
        "status": "done",
        "images": len(report["inputs"]),
        "images_changed": not scene.is_video and _have_changed(scene, names),
        "seconds": round(sum(seconds.values()), 2),
        "points": points,
        "created": report.get("created"),
    }


def _have_changed(scene: SceneFolder, used: set[str]) -> bool:
    """Whether the scene's images have other names than those that were used; not if it has none any more."""
    try:
        entries = {_name(path) for path in scene.images.iterdir()}
        suffixes = image_suffixes()
        new = (name for name in entries - used if Path(name).suffix.lower() in suffixes)
        if used <= entries and not any(new):
            return False  # no need to look closer
        with warnings.catch_warnings(action="ignore"):
            return {_name(path) for path in scene.paths()} != used
    except (OSError, ValueError):
        return False


def _name(path: Path) -> str:
    """As a report has it."""
    return Path(portable_name(path)).name
