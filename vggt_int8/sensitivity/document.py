"""`sensitivity.json`: the complete ranking with all numbers, and everything needed to repeat the measurement."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import torch

from vggt_int8.export.repeat import command_line
from vggt_int8.export.report import describe_machine, installed_versions
from vggt_int8.recipe import Recipe
from vggt_int8.sensitivity.measures import MEASURES, over_scenes, together
from vggt_int8.sensitivity.record import Record
from vggt_int8.sensitivity.scenes import Scene
from vggt_int8.sensitivity.tables import Row
from vggt_int8.sensitivity.units import ALL, BASE, STORED


def header(
    model: str, base: Recipe, settings: Mapping[str, Any], scenes: Sequence[Scene], device: torch.device
) -> dict[str, Any]:
    """The common beginning of all documents of this command, JSON-ready."""
    return {
        "format_version": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command_line": command_line(),
        "versions": installed_versions(),
        "machine": describe_machine(device),
        "model": model,
        "recipe": base.to_dict(),
        "settings": dict(settings),
        "scenes": [{"name": scene.name, "images": list(scene.images.shape)} for scene in scenes],
        "measures": {kind: {"title": title, "unit": unit} for kind, (title, unit) in MEASURES.items()},
    }


def document_of(
    model: str,
    base: Recipe,
    settings: Mapping[str, Any],
    scenes: Sequence[Scene],
    record: Record,
    rows: Sequence[Sequence[Row]],
    device: torch.device,
) -> dict[str, Any]:
    """The whole document, JSON-ready. rows: see `tables.ranking`; record: the measurements they are based on."""
    return {
        **header(model, base, settings, scenes, device),
        "units": [_unit(of_unit) for of_unit in rows],
        "stored": over_scenes(record.errors(STORED, "fp16", len(scenes))),
        "together": {
            "predicted": together(of_unit[0].errors for of_unit in rows),
            "measured": over_scenes(record.errors(ALL, BASE, len(scenes))),
        },
    }


def _unit(of_unit: Sequence[Row]) -> dict[str, Any]:
    unit = of_unit[0].unit
    options = [
        {
            "choice": row.option.choice,
            "scheme": row.option.label,
            "bytes": row.option.bytes,
            "error": row.error,
            "errors": row.errors,
            "scenes": row.of_scenes,
        }
        for row in of_unit
    ]
    return {"name": unit.name, "layers": list(unit.layers), "options": options}
