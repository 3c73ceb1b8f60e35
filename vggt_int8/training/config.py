"""Configuration of a training run on scenes, read from a TOML file with a fixed set of typed keys."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vggt_int8.listing import first_few
from vggt_int8.model import VGGTConfig
from vggt_int8.model.configs import AnyConfig
from vggt_int8.plain_data import shown
from vggt_int8.training.networks import config_class
from vggt_int8.training.sections import (
    DataConfig,
    Limits,
    OptimizerConfig,
    RunConfig,
    ValidationConfig,
    known_keys,
    loss_limits,
    read_sections,
)


@dataclass(frozen=True)
class LossConfig:
    """Weights of the loss terms (see `losses`), and alpha, the weight of log confidence."""

    camera: float = 5.0
    depth: float = 1.0
    point: float = 1.0
    track: float = 0.05
    teacher: float = 0.0  # of following the teacher's tokens; 0 leaves the teacher out of the steps
    alpha: float = 0.2
    gamma: float = 0.6  # decay of a camera iteration's weight, from the last to the first


@dataclass(frozen=True)
class TeacherConfig:
    """A trained network that initializes a new one, as far as it fits (see `inherit`), and whose tokens it can learn.

    model: "embedded" or a model folder; "": no teacher.
    encoder_blocks, layers: the teacher's blocks that initialize the blocks of the encoder and the layers of the
        aggregator; [] for the first ones.
    """

    model: str = ""
    encoder_blocks: tuple[int, ...] = ()
    layers: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(RunConfig):
    """A whole run on scenes with known geometry.

    model: keyword arguments of the network's config, and its `model_type` ("vggt" by default).
    """

    model: dict[str, Any]
    loss: LossConfig = field(default_factory=LossConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        model = self.network()
        self.check_sizes(model)
        if self.data.tracks and not getattr(model, "enable_track", False):
            raise ValueError(f"data.tracks is {self.data.tracks}, but the model has no track head")
        if self.loss.teacher and not self.teacher.model:
            raise ValueError(f"loss.teacher is {self.loss.teacher}, but [teacher] names no model")

    def _limits(self) -> Limits:
        return {**super()._limits(), **loss_limits(self.loss)}

    def network(self) -> AnyConfig:
        kind = config_class(self.model.get("model_type", VGGTConfig.model_type))
        unknown = sorted(set(self.model) - set(kind.__annotations__))
        if unknown:
            raise ValueError(f"[model] has unknown keys {first_few(unknown, spell=shown)}")
        return kind(**self.model)


def load_run(path: str | Path) -> list[TrainingConfig]:
    """Read a TOML file: the parts of a run, in order.

    The file itself is the first part. Each `[[then]]` adds a part that continues where the part before ends, with its
    own schedule and all other settings of that part except those it changes; everything but the model can be changed.
    Raises ValueError, naming the file, the part and the key, for an unknown, missing or impossible key.
    """
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path} is nested too deep for a run") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if "model" not in table:
        raise ValueError(f"{path}: there is no [model] table")
    changes = table.pop("then", [])
    if not isinstance(changes, list) or not all(isinstance(change, dict) for change in changes):
        raise ValueError(f"{path}: a further part is written [[then]], with two brackets")
    parts: list[TrainingConfig] = []
    for number, change in enumerate([{}, *changes]):
        try:
            if parts:
                table = _changed(table, change, parts[-1].optimizer.total_steps)
            parts.append(config_from_table(table))
        except (TypeError, ValueError) as error:
            where = f"[[then]] number {number}: " if number else ""
            raise ValueError(f"{path}: {where}{error}") from error
    return parts


def end_run_at(parts: Sequence[TrainingConfig], total_steps: int) -> list[TrainingConfig]:
    """The run with another length: its last part, including the decay, ends at `total_steps`."""
    *whole, last = [part for part in parts if part.optimizer.first_step < total_steps] or parts[:1]
    return [*whole, replace(last, optimizer=replace(last.optimizer, total_steps=total_steps))]


def _changed(table: dict[str, Any], change: dict[str, Any], first_step: int) -> dict[str, Any]:
    """A part's `table` with the changes of the next part, which starts at `first_step`."""
    if "model" in change:
        raise ValueError("the network stays the same in all parts of a run: leave `model` out")
    schedule = known_keys(change.get("optimizer", {}), OptimizerConfig, "[optimizer]")
    if "first_step" in schedule:
        raise ValueError("optimizer.first_step is where the part before it ends: leave it out")
    if "total_steps" not in schedule:
        raise ValueError("optimizer.total_steps is missing: it says at which step the part ends")
    changed = dict(table)
    for key, value in change.items():
        before = table.get(key, {})
        changed[key] = {**before, **value} if isinstance(before, dict) and isinstance(value, dict) else value
    changed["optimizer"]["first_step"] = first_step
    return changed


def config_from_table(table: dict[str, Any]) -> TrainingConfig:
    """The inverse of `dataclasses.asdict`, including after conversion to JSON or TOML (lists instead of tuples)."""
    base = {
        "data": DataConfig(),
        "optimizer": OptimizerConfig(),
        "loss": LossConfig(),
        "teacher": TeacherConfig(),
        "validation": ValidationConfig(),
    }
    return TrainingConfig(**read_sections(table, base, TrainingConfig))
