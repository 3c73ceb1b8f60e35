"""The document of `benchmarks.accuracy` as a Markdown table: what each recipe loses, and where a limit is missed.

A cell holds the difference of AUC@5 from fp32 of the same variant, in points, and of AbsRel in per cent, each with its
95 % interval (paired bootstrap over scenes). Of several variants of one sort (three draws of outlier channels) it shows
the worst: the lowest AUC@5, the highest AbsRel. A limit counts as missed only where an interval lies beyond it as a
whole, in any of the variants.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vggt_int8 import available_recipes

MISSED = "✗"


class Limit(NamedTuple):
    """The most that may be lost: points of AUC@5, per cent of AbsRel."""

    auc_5: float
    abs_rel: float


SORTS = ("plain", "channels", "tokens")
# What this project asks of each recipe, on the sorts of models above; None is reported alone.
LIMITS: dict[str, tuple[Limit | None, Limit | None, Limit | None]] = {
    "fp16": (Limit(0.2, 1.0), Limit(0.3, 1.0), None),
    "int8_weight_only": (Limit(0.3, 1.0), Limit(1.5, 1.0), None),
    "int8_dynamic": (Limit(0.5, 2.0), None, None),
    "int8_rotated": (Limit(0.3, 1.0), Limit(0.8, 1.5), Limit(1.5, 2.0)),
    "int8_smooth": (None, None, None),
    "int8_smooth_rotated": (Limit(0.3, 1.0), Limit(0.3, 1.0), Limit(1.0, 1.5)),
    "int8_mixed": (None, None, None),
    "int8_static": (None, None, None),
    "int8_static_rotated": (Limit(1.0, 2.0), Limit(1.5, 3.0), None),
}
HALF_OF = {"int8_qat": "int8_static_rotated"}  # rows that may lose half of what another one loses
RECIPES = [name for name in LIMITS if name in available_recipes()]

_ENGLISH = (
    "recipe",
    {"plain": "plain", "channels": "outlier channels{of}", "tokens": "outlier tokens and fc2 inputs{of}"},
    " (worst of seeds {seeds})",
    "Difference from fp32 of the same model: AUC@5 in points / depth AbsRel in per cent, with 95 % intervals (paired "
    "bootstrap over scenes). {scenes} held-out scenes × {views} views of {size}; fp32 has AUC@5 {auc}, AbsRel {rel}. "
    f"{MISSED}: an interval lies beyond the project's limit as a whole. {{machine}}, torch {{torch}}, {{date}}, "
    "`{command}`.",
)
_CHINESE = (
    "配方",
    {"plain": "原模型", "channels": "离群通道{of}", "tokens": "离群 token 与 fc2 输入{of}"},
    "（种子 {seeds} 中最差者）",
    "与同一模型 fp32 的差：AUC@5（百分点）/ 深度 AbsRel（%），附 95 % 区间（按场景配对自助法）。{scenes} 个留出场景 × "
    "{views} 个视图，{size}；fp32 的 AUC@5 为 {auc}，AbsRel 为 {rel}。"
    f"{MISSED}：区间整体超出本项目的限值。{{machine}}，torch {{torch}}，{{date}}，`{{command}}`。",
)

Row = Mapping[str, Any]


def markdown(document: Mapping[str, Any], *, chinese: bool = False) -> str:
    """The table and what a reader must know to repeat it."""
    first, titles, of_seeds, words = _CHINESE if chinese else _ENGLISH
    rows: Sequence[Row] = document["rows"]
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    sorts = {sort: [kind for kind in kinds if kind.partition(":")[0] == sort] for sort in SORTS}
    sorts = {sort: found for sort, found in sorts.items() if found}
    head = [first]
    for sort, found in sorts.items():
        seeds = ", ".join(kind.partition(":")[2] for kind in found)
        head.append(titles[sort].format(of=of_seeds.format(seeds=seeds) if len(found) > 1 else ""))
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for label in dict.fromkeys(row["label"] for row in rows if "differences" in row):
        cells = [_cell(label, sort, [row for row in rows if row["kind"] in found]) for sort, found in sorts.items()]
        lines.append(f"| `{label}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\n" + words.format(**_facts(document, sorts)) + "\n"


def limit_of(label: str, sort: str, rows: Sequence[Row]) -> Limit | None:
    """rows: of this sort. A row that may lose half as much as another has no limit where the other is not there."""
    if label not in HALF_OF:
        limits = dict(zip(SORTS, LIMITS[label], strict=True)) if label in LIMITS else {}
        return limits.get(sort)
    other = [row["differences"] for row in rows if row["label"] == HALF_OF[label]]
    if not other:
        return None
    lost = max(0.0, -min(found["auc_5"]["value"] for found in other))
    more = max(0.0, *(found["abs_rel"]["value"] for found in other))
    return Limit(lost / 2, more / 2)


def _cell(label: str, sort: str, rows: Sequence[Row]) -> str:
    found = [row["differences"] for row in rows if row["label"] == label]
    if not found:
        return "–"
    limit = limit_of(label, sort, rows)
    auc = min((differences["auc_5"] for differences in found), key=lambda value: value["value"])
    rel = max((differences["abs_rel"] for differences in found), key=lambda value: value["value"])
    lost = limit is not None and any(differences["auc_5"]["high"] < -limit.auc_5 for differences in found)
    more = limit is not None and any(differences["abs_rel"]["low"] > limit.abs_rel for differences in found)
    return f"{_value(auc, 2, '')}{' ' + MISSED if lost else ''} / {_value(rel, 1, ' %')}{' ' + MISSED if more else ''}"


def _value(interval: Mapping[str, float], digits: int, unit: str) -> str:
    value, low, high = (f"{interval[name]:+.{digits}f}".replace("-", "−") for name in ("value", "low", "high"))
    return f"{value}{unit} [{low}, {high}]"


def _facts(document: Mapping[str, Any], sorts: Mapping[str, Sequence[str]]) -> dict[str, str]:
    settings, machine = document["settings"], document["machine"]
    plain = [row for row in document["rows"] if "differences" not in row]
    spread = {}
    for name, key, digits in (("auc", "auc_5", 2), ("rel", "abs_rel", 4)):
        values = {sort: [row["scores"][key] for row in plain if row["kind"] in kinds] for sort, kinds in sorts.items()}
        spread[name] = " / ".join(dict.fromkeys(f"{min(found):.{digits}f}" for found in values.values()))
    return {
        "scenes": str(settings["scenes"]),
        "views": str(settings["data"]["views"]),
        "size": " × ".join(map(str, settings["data"]["size"])),
        "machine": machine["cpu"] if machine["gpu"] is None else machine["gpu"]["name"],
        "torch": str(document["versions"]["torch"]),
        "date": document["created"][:10],
        "command": document["command_line"],
        **spread,
    }
