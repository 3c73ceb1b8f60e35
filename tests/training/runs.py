"""Short runs, and what they logged."""

import dataclasses
from pathlib import Path
from typing import Any

from vggt_int8.training.config import TrainingConfig
from vggt_int8.training.log import read_log
from vggt_int8.training.loop import RunLimits
from vggt_int8.training.sections import FrameShape

ONLY = RunLimits(validate_at_end=False)
SHAPES = (FrameShape((32, 32)), FrameShape((16, 32), weight=2.0, pixel_aspect=(0.9, 1.1)))


def entries(out: Path, kind: str) -> list[dict[str, Any]]:
    return [entry for entry in read_log(out / "log.jsonl") if entry["kind"] == kind]


def with_shapes(config: TrainingConfig) -> TrainingConfig:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, shapes=SHAPES))
