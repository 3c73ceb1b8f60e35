"""The summary as tables: differences from the first row, then scores, then single layers."""

import re
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from vggt_int8.scorecard.scan import TOLERANCES


class Metric(NamedTuple):
    title: str
    unit: str
    digits: int


# In the order of the tables. "of scale": in per cent of the scene's scale.
METRICS = {
    "auc_30": Metric("AUC@30", "%", 2),
    "auc_15": Metric("AUC@15", "%", 2),
    "auc_5": Metric("AUC@5", "%", 2),
    "auc_3": Metric("AUC@3", "%", 2),
    "rra_5": Metric("RRA@5", "%", 2),
    "rra_15": Metric("RRA@15", "%", 2),
    "rra_30": Metric("RRA@30", "%", 2),
    "rta_5": Metric("RTA@5", "%", 2),
    "rta_15": Metric("RTA@15", "%", 2),
    "rta_30": Metric("RTA@30", "%", 2),
    "rotation_median": Metric("rotation", "°, median", 3),
    "translation_median": Metric("translation", "°, median", 3),
    "ate": Metric("ATE", "% of scale", 3),
    "focal_ratio": Metric("fx/fy", "", 4),
    "abs_rel": Metric("AbsRel", "scale", 4),
    "rmse": Metric("RMSE", "% of scale, scale", 3),
    "delta_125": Metric("δ < 1.25", "%, scale", 2),
    "abs_rel_scale_shift": Metric("AbsRel", "scale and shift", 4),
    "rmse_scale_shift": Metric("RMSE", "% of scale, scale and shift", 3),
    "delta_125_scale_shift": Metric("δ < 1.25", "%, scale and shift", 2),
    "abs_rel_none": Metric("AbsRel", "not aligned", 4),
    "rmse_none": Metric("RMSE", "% of scale, not aligned", 3),
    "delta_125_none": Metric("δ < 1.25", "%, not aligned", 2),
    "accuracy": Metric("accuracy", "% of scale", 3),
    "completeness": Metric("completeness", "% of scale", 3),
    "normal_consistency": Metric("normals", "0 … 1", 4),
    "f_score": Metric("F-score", "%", 2),
    **{
        f"scan_{name}_{tolerance}": Metric(f"scan {title} at {tolerance} cm", "%", 2)
        for tolerance in TOLERANCES
        for name, title in (("accuracy", "accuracy"), ("completeness", "completeness"), ("f", "F-score"))
    },
}
LAYERS = "SQNR of single layers (dB)"
RANGES = "Calibrated ranges of static layers"
HEADLINES = ("auc_30", "auc_5", "auc_3", "abs_rel", "accuracy")
FROM_FIRST = {
    "rotation_degrees_from_first": Metric("rotation", "°", 3),
    "center_percent_from_first": Metric("centres", "%", 3),
    "field_of_view_degrees_from_first": Metric("field of view", "°", 3),
    "depth_percent_from_first": Metric("depth", "%", 3),
    "points_percent_from_first": Metric("points", "%", 3),
}


class Table(NamedTuple):
    title: str
    head: list[str]
    lines: list[list[str]]
    note: str = ""


def all_tables(document: dict[str, Any]) -> list[Table]:
    """All tables that are not empty."""
    rows = document["rows"]
    tables = [_differences(rows), _agreement(rows), _scores(rows), _layers(rows), _ranges(rows)]
    return [table for table in tables if table.lines]


def markdown(document: dict[str, Any], *, layers: bool = True) -> str:
    """Write the report as Markdown. layers: include the tables of single layers, which are long."""
    parts = [f"# {heading(document)}", "", *(f"- {line}" for line in facts(document))]
    for table in all_tables(document):
        if not layers and table.title in (LAYERS, RANGES):
            continue
        parts += ["", f"## {table.title}", ""]
        parts += [_line(table.head), _line(["---", *["---:"] * (len(table.head) - 1)]), *map(_line, table.lines)]
        parts += ["", table.note] if table.note else []
    return "\n".join(parts) + "\n"


def heading(document: dict[str, Any]) -> str:
    return f"Evaluation on {document['scenes']} scenes"


def facts(document: dict[str, Any]) -> list[str]:
    """What is needed to repeat the evaluation, one line each."""
    data, protocol, machine = document["data"], document["protocol"], document["machine"]
    what = f"{data['kind']} scenes"
    if data["kind"] == "rendered":
        size = "x".join(map(str, data["size"]))
        which = f"rendered scenes 0 to {document['scenes'] - 1} of the split {data['split']}"
        what = f"{which}, {data['views']} views of {size}"
    elif "views" in data:
        size = "{}, patches of {}".format(*data["model_size"])
        which = ", ".join(data["scenes"])
        what = f"{data['kind']} scenes {which}; {data['views']} views of each (named in scores.json), images of {size}"
    gpu = "" if machine["gpu"] is None else f", {machine['gpu']['name']}"
    first = document["rows"][0]
    warning = [
        f"{first['label']} is quantized itself: differences are not from fp32, and nothing proves that other rows' "
        "quantizers are active"
    ]
    return [
        *(warning if first["int8_layers"] else []),
        f"Data: {what}",
        f"Points: at most {protocol['points']} of a scene, F-score within {protocol['threshold']:.0%} of the scene's "
        f"scale, {'refined by closest points' if protocol['icp'] else 'aligned by a similarity'}, nearest points by "
        f"{document['search']}",
        f"Machine: {machine['cpu']}{gpu}; torch {document['versions']['torch']}; {document['created']}",
        f"Command: `{document['command_line']}`",
    ]


def _differences(rows: list[dict[str, Any]]) -> Table:
    first, others = rows[0], rows[1:]
    names = [name for name in HEADLINES if any(name in row["differences"] for row in others)]
    lines = [[row["label"], *(_change(row, name) for name in names)] for row in others if names]
    note = (
        "Means over scenes; in brackets the 95 % interval of a paired bootstrap over scenes. AUC in points; AbsRel and "
        "accuracy in per cent of the first model's."
    )
    return Table(f"Difference from {first['label']}", ["", *(METRICS[n].title for n in names)], lines, note)


def _change(row: dict[str, Any], name: str) -> str:
    found = row["differences"].get(name)
    if found is None:
        return "–"
    unit = "" if name.startswith("auc") else " %"
    return f"{found['value']:+.2f}{unit} [{found['low']:+.2f}, {found['high']:+.2f}]"


def _agreement(rows: list[dict[str, Any]]) -> Table:
    names = [name for name in FROM_FIRST if any(name in row["scores"] for row in rows[1:])]
    outputs = list(dict.fromkeys(name for row in rows[1:] for name in row["relative"]))
    head = ["", *(f"{FROM_FIRST[n].title} ({FROM_FIRST[n].unit})" for n in names), *(f"rel. {o}" for o in outputs)]
    lines = [
        [
            row["label"],
            *(_value(row["scores"], name, FROM_FIRST[name]) for name in names),
            *(f"{row['relative'][output]:.2e}" if output in row["relative"] else "–" for output in outputs),
        ]
        for row in rows[1:]
    ]
    note = "Nothing is aligned. Per scene the mean over frames (cameras) or the median over pixels; means over scenes."
    return Table(f"Agreement with {rows[0]['label']}", head, lines, note)


def _scores(rows: list[dict[str, Any]]) -> Table:
    """One line per metric and one column per model: there are many metrics and few models."""
    names = [name for name in METRICS if any(name in row["scores"] for row in rows)]
    lines = [[_named(METRICS[name]), *(_value(row["scores"], name, METRICS[name]) for row in rows)] for name in names]
    return Table("Scores against the truth", ["", *(row["label"] for row in rows)], lines)


def _layers(rows: list[dict[str, Any]]) -> Table:
    measured = [row for row in rows if row["sqnr_db"]]
    kinds = list(dict.fromkeys(kind_of(name) for row in measured for name in row["sqnr_db"]))
    lines = []
    for kind in kinds:
        cells = []
        for row in measured:
            values = [value for name, value in row["sqnr_db"].items() if kind_of(name) == kind]
            cells.append(f"{min(values):.1f} / {statistics.median(values):.1f}" if values else "–")
        lines.append([kind, *cells])
    note = "Lowest / median over the layers of a kind, each on the inputs that it has in the first model."
    return Table(LAYERS, ["", *(row["label"] for row in measured)], lines, note)


def _ranges(rows: list[dict[str, Any]]) -> Table:
    """One line per kind of layer, one column per calibrated row: ranges of special tokens, then of all others, where
    both have their own.
    """
    calibrated = {row["label"]: row["calibration"] for row in rows if row["calibration"]}
    kinds = list(dict.fromkeys(kind_of(name) for facts in calibrated.values() for name in facts["ranges"]))
    lines = []
    for kind in kinds:
        cells = []
        for facts in calibrated.values():
            found = [ranges for name, ranges in facts["ranges"].items() if kind_of(name) == kind]
            cells.append(" | ".join(map(_span, zip(*found, strict=True))) if found else "–")
        lines.append([kind, *cells])
    how = "; ".join(
        f"{label}: observer {facts['observer']}, {facts['images']} images" for label, facts in calibrated.items()
    )
    note = (
        "From the smallest to the largest layer of a kind, camera and register tokens | all others; of rotated inputs "
        f"where a layer rotates. {how}."
    )
    return Table(RANGES, ["", *calibrated], lines, note)


def _span(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.3g}" if low == high else f"{low:.3g} … {high:.3g}"


def kind_of(layer: str) -> str:
    """The kind of a layer: its name with numbers replaced by "*", except in fc1 and fc2, as in
    "aggregator.frame_blocks.*.mlp.fc1".
    """
    return re.sub(r"(?<!fc)\d+", "*", layer)


def _named(metric: Metric) -> str:
    return f"{metric.title} ({metric.unit})" if metric.unit else metric.title


def _value(scores: dict[str, float], name: str, metric: Metric) -> str:
    return f"{scores[name]:.{metric.digits}f}" if name in scores else "–"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
