"""Sections of a model card: what `eval` and `bench` have measured of the model, and what they have not.

Pure functions of plain data, like `model_card.py`: a row of scores.json beside the first model's, rows of a benchmark.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

# Scores for a card, if measured. True: higher is better, and fp32 counts as 100. Differences of the others are in per
# cent of the first model's error (`RELATIVE` of `scorecard.summary`).
SCORES: dict[str, tuple[str, str, bool]] = {
    "auc_30": ("AUC@30", "%", True),
    "auc_15": ("AUC@15", "%", True),
    "auc_5": ("AUC@5", "%", True),
    "auc_3": ("AUC@3", "%", True),
    "ate": ("ATE", "% of scale", False),
    "abs_rel": ("depth AbsRel", "", False),
    "delta_125": ("depth δ < 1.25", "%", True),
    "accuracy": ("points, accuracy", "% of scale", False),
    "completeness": ("points, completeness", "% of scale", False),
    "f_score": ("points, F-score", "%", True),
    "scan_f_2": ("scan F-score at 2 cm", "%", True),
    "scan_f_5": ("scan F-score at 5 cm", "%", True),
    "scan_f_20": ("scan F-score at 20 cm", "%", True),
}


def row_of(document: Mapping[str, Any], identity: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The row of scores.json for exactly these weights; None if there is none."""
    rows = document.get("rows") or []
    return next((row for row in rows if row.get("identity", {}).get("model") == identity), None)


def accuracy(document: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """The accuracy section: scores of the first model and of this one, and the ratio."""
    first = document["rows"][0]
    lines = ["| | {} | this model | recovered | difference [95 %] |".format(first["label"].replace("|", "\\|"))]
    lines += ["|---|---:|---:|---:|---:|"]
    for name, (title, unit, more_is_better) in SCORES.items():
        if name not in row["scores"] or name not in first["scores"]:
            continue
        before, after = first["scores"][name], row["scores"][name]
        named = f"{title} ({unit})" if unit else title
        recovered = f"{100 * after / before:.1f} %" if more_is_better and before else "–"
        change = (row.get("differences") or {}).get(name)
        interval = "–" if change is None else _change(change, "" if more_is_better else " %")
        lines.append(f"| {named} | {before:.4g} | {after:.4g} | {recovered} | {interval} |")
    return "\n".join(
        [
            *(_data(document), "", *lines, ""),
            "Differences are in points; of errors (ATE, AbsRel, accuracy, completeness) in per cent of the error. "
            f"Measured by `{document['command_line']}`, {_where(document)}.",
        ]
    )


def speed(rows: Sequence[Mapping[str, Any]]) -> str:
    """The section on time and memory, from rows that passed their check."""
    first = rows[0]
    lines = ["| frames | images | ms | p20–p80 | peak GiB | runs on |", "|---:|---|---:|---:|---:|---|"]
    for row in rows:
        peak = "–" if row["peak_gib"] is None else f"{row['peak_gib']:.2f}"
        spread = "–" if row["ms_low"] is None else f"{row['ms_low']:.1f}–{row['ms_high']:.1f}"
        size = "{} x {}".format(*row["size"])
        lines.append(f"| {row['frames']} | {size} | {row['ms']:.1f} | {spread} | {peak} | {row['variant']} |")
    gpu = first["machine"]["gpu"]
    machine = gpu["name"] if gpu else f"{first['machine']['cpu']}, {first['machine'].get('torch_threads')} threads"
    of = {row["model"] for row in rows}
    note = f"Whole forward pass of {', '.join(sorted(of))}; medians. {machine}, torch {first['versions'].get('torch')}"
    return "\n".join([*lines, "", f"{note}, {_day(first['date'])}, `{first['command']}`."])


def of_recipe(rows: Sequence[Mapping[str, Any]], recipe: str) -> list[Mapping[str, Any]]:
    """Valid rows of a recipe with any backend, on the machine of the last of them."""
    found = [row for row in rows if row["status"] == "ok" and row["variant"].partition(":")[0] == recipe]
    if not found:
        return []
    machine = found[-1]["machine"]
    return sorted(
        (row for row in found if row["machine"] == machine),
        key=lambda row: (row["variant"], row["size"], row["frames"]),
    )


def not_measured(document: Mapping[str, Any] | None, rows: Sequence[Any]) -> list[str]:
    """Caveats about what a reader might take for granted."""
    words = []
    if document is None:
        words.append("Accuracy: nothing was measured of these weights.")
    elif document["data"].get("kind") in ("rendered", "stored"):
        words.append("Accuracy on photographs: the scores are of synthetic scenes, with exact truth.")
    if document is not None and int(document.get("scenes") or 0) < 10:
        words.append("Other scenes: with fewer than ten, intervals are only a hint.")
    if not rows:
        words.append("Time and memory: nothing was measured of this recipe.")
    else:
        words.append("Other machines, sizes and numbers of frames than those in the table of time and memory.")
    return words


def _change(change: Mapping[str, float], unit: str) -> str:
    return f"{change['value']:+.2f}{unit} [{change['low']:+.2f}, {change['high']:+.2f}]"


def _data(document: Mapping[str, Any]) -> str:
    data = document["data"]
    if data.get("kind") == "rendered":
        size = " x ".join(map(str, data["size"]))
        return f"{document['scenes']} rendered scenes (split {data['split']}) of {data['views']} views of {size}."
    views = f", {data['views']} views of each" if "views" in data else ""
    names = ", ".join(data.get("scenes") or {})
    return f"{document['scenes']} scenes of the kind {data.get('kind')} ({names}){views}."


def _where(document: Mapping[str, Any]) -> str:
    machine = document["machine"]
    gpu = machine.get("gpu")
    name = gpu["name"] if gpu else machine["cpu"]
    return f"{name}, torch {document['versions'].get('torch')}, {_day(document['created'])}"


def _day(time: str) -> str:
    return re.sub(r"T.*", "", time)
