"""Summarize the scores of all rows in one document: per scene, as means, and as differences from the first row."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from vggt_int8.difference import Difference
from vggt_int8.eval.active import check_active
from vggt_int8.scorecard.data import DataSet
from vggt_int8.scorecard.intervals import paired_interval
from vggt_int8.scorecard.scores import Protocol as ScoreProtocol
from vggt_int8.scorecard.scores import add_differences, differences, score_scene

# Errors whose difference is reported in per cent of the first row's error, as in "AbsRel +1 %".
RELATIVE = ("abs_rel", "rmse", "accuracy", "completeness", "ate")


class Scored(Protocol):
    """What `summarize` reads of a row: `Predictions`, or outputs that are computed on demand."""

    @property
    def label(self) -> str: ...

    @property
    def identity(self) -> Mapping[str, Any]: ...

    def facts(self) -> Mapping[str, Any]:
        """`int8_layers`, `sqnr_db` and `calibration` of `describe`."""
        ...

    def read(self, index: int) -> dict[str, Tensor]:
        """The outputs for scene `index`, without a batch axis."""
        ...


def summarize(
    rows: Sequence[Scored],
    data: DataSet,
    protocol: ScoreProtocol,
    on_scene: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Score the cached predictions. Each row gives one entry; the first row is the reference:

    `label`, `identity`, `int8_layers` (number), `sqnr_db` (layer -> dB, or None), `calibration` (facts about static
    scales, or None), `relative` (output -> norm of the error divided by the norm of the output, over all scenes),
    `scenes` (metric -> one value per scene, None where it does not exist), `scores` (metric -> mean), `differences`
    (metric -> `value`, `low`, `high`: difference from the first row, in per cent for the metrics in `RELATIVE`).

    Raises RuntimeError if a row has INT8 layers but exactly the outputs of the first row, and `StaleError`.
    """
    per_scene: list[list[dict[str, float]]] = [[] for _ in rows]
    kept: list[dict[str, Difference]] = [{} for _ in rows]
    for index, truth in enumerate(data):
        outputs = [row.read(index) for row in rows]
        size = (truth.images.shape[-2], truth.images.shape[-1])
        for number, output in enumerate(outputs):
            values = score_scene(output, truth, protocol)
            if number:
                values |= differences(output, outputs[0], size)
                add_differences(kept[number], output, outputs[0])
            per_scene[number].append(values)
        if on_scene is not None:
            on_scene(index + 1, len(data))
    result: list[dict[str, Any]] = []
    for number, row in enumerate(rows):
        facts = row.facts()
        relative = {name: found.relative for name, found in kept[number].items()}
        if number and not result[0]["int8_layers"]:  # else the report says that nothing is proven
            check_active(row.label, facts["int8_layers"], relative)
        result.append(_entry(row, facts, relative, per_scene[number], per_scene[0], protocol.seed))
    return result


def _entry(
    row: Scored,
    facts: Mapping[str, Any],
    relative: dict[str, float],
    own: list[dict[str, float]],
    first: list[dict[str, float]],
    seed: int,
) -> dict[str, Any]:
    names = list(dict.fromkeys(name for values in own for name in values))
    scenes = {name: [values.get(name) for values in own] for name in names}
    entry = {
        "label": row.label,
        "identity": dict(row.identity),
        "int8_layers": len(facts["int8_layers"]),
        "sqnr_db": facts["sqnr_db"] and {layer: float(db) for layer, db in facts["sqnr_db"].items()},
        "relative": relative,
        "calibration": facts.get("calibration"),
        "scores": {name: _mean(values) for name, values in scenes.items()},
        "scenes": scenes,
    }
    if own is first:
        return entry
    changes = {}
    for name in names:
        pairs = [(a[name], b[name]) for a, b in zip(first, own, strict=True) if name in a and name in b]
        if pairs:
            before, after = (list(values) for values in zip(*pairs, strict=True))
            stem = name.removesuffix("_none").removesuffix("_scale_shift")
            changes[name] = paired_interval(before, after, relative=stem in RELATIVE, seed=seed)._asdict()
    return {**entry, "differences": changes}


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known)
