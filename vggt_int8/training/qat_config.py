"""The configuration of quantization-aware training: a TOML file like that of the training command, with defaults by
size.
"""

import tomllib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from vggt_int8.model.network_config import NetworkConfig
from vggt_int8.plain_data import shown
from vggt_int8.training.distill import DistillConfig
from vggt_int8.training.sections import (
    DataConfig,
    Limits,
    OptimizerConfig,
    RunConfig,
    ValidationConfig,
    loss_limits,
    read_sections,
)

TRAINED = ("all", "norms")
SCALES = ("learned", "fixed")
STARTS = ("gptq", "nearest")
LARGE = 100e6  # parameters from which memory decides the defaults


@dataclass(frozen=True, kw_only=True)
class QatConfig(RunConfig):
    """A whole run.

    trained: "all" parameters but the track head's, which no loss reads; or "norms": LayerNorm, LayerScale and biases,
        whose gradients and moments take a thousandth of the memory.
    scales: static ones are "learned" or stay "fixed" at their calibrated values.
    start: initial weights are those that are encoded as GPTQ's codes ("gptq", whatever the recipe's rounding is), or
        the model's own ("nearest").
    gradient_checkpointing: recompute activations of blocks in the backward pass: a third slower, a fraction of the
        memory.
    """

    loss: DistillConfig = field(default_factory=DistillConfig)
    trained: str = "all"
    scales: str = "learned"
    start: str = "gptq"
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, choices in (("trained", TRAINED), ("scales", SCALES), ("start", STARTS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {shown(getattr(self, name))}")
        if unknown := set(self.compile) - {"render"}:
            raise ValueError(f"compile can name render alone here, not {', '.join(sorted(unknown))}")
        if self.data.tracks:
            raise ValueError(f"data.tracks is {self.data.tracks}, but tracks are not distilled: leave it out")
        if not any(getattr(self.loss, entry.name) for entry in fields(self.loss) if entry.name != "gamma"):
            raise ValueError("all weights of [loss] are 0, so there is nothing to learn")

    def _limits(self) -> Limits:
        return {**super()._limits(), **loss_limits(self.loss)}


def default_config(model: NetworkConfig) -> QatConfig:
    """Defaults for a network of this size.

    Below about 100 M parameters (the embedded model) all of them train in fp32. Above (VGGT-1B) LayerNorms, LayerScales
    and biases train, in bf16 and with gradient checkpointing.
    """
    size = (model.img_size, model.img_size)
    optimizer = OptimizerConfig(
        learning_rate=5e-7,
        scale_learning_rate=3e-4,
        betas=(0.9, 0.99),
        weight_decay=0.0,
        warmup_steps=20,
        total_steps=1000,
        decay_share=1.0,
    )
    if model.least_parameters() < LARGE:
        return QatConfig(
            data=DataConfig(size=size, views=(2, 4, 8), frames_per_step=64),
            optimizer=optimizer,
            validation=ValidationConfig(scenes=32, views=(8,), every_steps=100, frames_per_batch=64),
            mixed_precision="no",
            log_steps=20,
        )
    return QatConfig(
        data=DataConfig(size=size, views=(2, 4, 8), frames_per_step=8),
        optimizer=replace(optimizer, total_steps=500),
        validation=ValidationConfig(scenes=8, views=(4,), every_steps=100, frames_per_batch=4),
        trained="norms",
        gradient_checkpointing=True,
        log_steps=10,
    )


def read_table(path: Path | None) -> dict[str, Any]:
    """What a TOML file holds, nothing for None. Raises ValueError that names the file."""
    try:
        return {} if path is None else tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error


def settings_for(
    table: dict[str, Any], model: NetworkConfig, path: Path | None, total_steps: int | None = None
) -> QatConfig:
    """The table of a file, every key of which is known and typed; what it leaves out is as in `default_config`.

    total_steps: unless it is None, instead of the file's. Raises ValueError that names the file, `path`, and the key.
    """
    try:
        config = qat_from_table(table, default_config(model))
        if total_steps is not None:
            config = replace(config, optimizer=replace(config.optimizer, total_steps=total_steps))
        config.check_sizes(model)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    return config


def qat_from_table(table: dict[str, Any], base: QatConfig) -> QatConfig:
    """`base` with what a table, of TOML or JSON, says otherwise."""
    sections = {name: getattr(base, name) for name in ("data", "optimizer", "validation", "loss")}
    return replace(base, **read_sections(table, sections, QatConfig))
