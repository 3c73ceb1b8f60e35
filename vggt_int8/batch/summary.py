"""summary.json: every scene of a batch, what became of it, and how long it took; from the scenes' own reports."""

import json
from typing import Any

from vggt_int8.batch.board import REPORT, Board
from vggt_int8.batch.scenes import SceneFolder

FORMAT = 1


def summarize(board: Board) -> dict[str, Any]:
    """JSON-ready, in the scenes' order. seconds: of all stages of a scene, whose sum is more than the time it took,
    since stages of several scenes run beside one another.
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
    report = json.loads((board.out / scene.name / REPORT).read_text(encoding="utf-8"))
    outputs = report.get("outputs") or {}
    counts = (outputs.get(kind) or {} for kind in ("points", "glb", "colmap", "transforms"))  # of ply: "points"
    points = next((count["written" if "written" in count else "points"] for count in counts if count), None)
    seconds = report.get("seconds") or {}
    return {
        "scene": scene.name,
        "status": "done",
        "images": len(report.get("inputs") or []),
        "seconds": round(sum(seconds.values()), 2),
        "points": points,
        "created": report.get("created"),
    }
