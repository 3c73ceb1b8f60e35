"""A whole training run: its start, its parts in sequence, and the export of its weights as a model."""

import dataclasses
import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vggt_int8.model.families import AnyNetwork, network_class
from vggt_int8.training.checkpoint import find_checkpoint, load_checkpoint, read_config, read_facts, save_checkpoint
from vggt_int8.training.config import TrainingConfig
from vggt_int8.training.inherit import Inherited, inherit
from vggt_int8.training.log import check_run_folder
from vggt_int8.training.loop import RunLimits
from vggt_int8.training.networks import first_difference, trained_network
from vggt_int8.training.processes import make_accelerator
from vggt_int8.training.start import fresh_model
from vggt_int8.training.trainer import Trainer


@dataclass(frozen=True)
class RunEnd:
    """Where and why a run stopped."""

    step: int
    total_steps: int
    reason: str
    checkpoint: Path


def train_run(
    parts: Sequence[TrainingConfig],
    out: Path,
    *,
    init: Path | None = None,
    first_step: int = 0,
    max_minutes: float | None = None,
    save_minutes: float = 4.0,
    quiet: bool = False,
) -> RunEnd | None:
    """Train the parts of a run in order, or continue in the part of the checkpoint in `out`.

    Each part continues from the checkpoint of the part before, like a resumed run. A new run starts with its teacher's
    weights, as far as they fit, if there is one, or with those of `init`, a model folder, at `first_step`, as if
    earlier parts had produced them.

    max_minutes: wall-clock time for all parts together.
    save_minutes: time between checkpoints.
    quiet: no progress on stderr.

    Returns None in every process but the main one. Raises ValueError if the checkpoint is damaged or of another
    network, if there is one together with `init`, or if `first_step` is not a step of the run; FloatingPointError if
    the run diverges; OSError if `out` is not writable or not the folder of a run.
    """
    check_run_folder(out)
    model = None
    if init is not None:
        if (out / "checkpoint").exists():
            raise ValueError(f"{out} holds a run already: leave --init out to go on, or name another --out")
        model = trained_model(init, parts[0])
    if first_step:
        if model is None:
            raise ValueError("--first-step is for weights that are given with --init")
        start_at(first_step, parts, out, model)
        model = None
    accelerator, started = make_accelerator(), time.monotonic()
    step = read_facts(out / "checkpoint")["step"] if find_checkpoint(accelerator, out / "checkpoint") else 0
    begins = None
    if model is None and not (out / "checkpoint").exists() and parts[0].teacher.model:
        model, begins = begin_as_teacher(parts[0])
    for part in [part for part in parts if part.optimizer.total_steps > step] or parts[-1:]:
        left = None if max_minutes is None else max_minutes - (time.monotonic() - started) / 60
        trainer = Trainer(part, out, model, quiet=quiet)
        if begins is not None:
            trainer.console.print(f"begins as {part.teacher.model}: {begins}", highlight=False)
            begins = None
        trainer.console.print(f"from step {trainer.step} to {part.optimizer.total_steps}, on {trainer.device}")
        reason = trainer.train(RunLimits(left, save_minutes=save_minutes))
        end = RunEnd(trainer.step, parts[-1].optimizer.total_steps, reason, trainer.checkpoint)
        if trainer.step < part.optimizer.total_steps:
            break
        # Compiled and captured graphs of this part hold its weights.
        del trainer
        model = None
        torch._dynamo.reset()
        gc.collect()
    is_main = accelerator.is_main_process
    accelerator.end_training()
    return end if is_main else None


def begin_as_teacher(config: TrainingConfig) -> tuple[AnyNetwork, Inherited]:
    """A new model with the weights of the run's teacher, as far as they fit. Raises ValueError, naming the teacher."""
    model, teacher = fresh_model(config), config.teacher
    try:
        inherited = inherit(model, trained_network(teacher.model), teacher.encoder_blocks, teacher.layers)
    except ValueError as error:
        raise ValueError(f"[teacher] {teacher.model}: {error}") from error
    return model, inherited


def trained_model(folder: Path, config: TrainingConfig) -> AnyNetwork:
    """Load the weights of a model folder in fp32 for further training. Raises ValueError for weights of another
    network.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: --init takes a model's, with config.json and weights")
    wanted = config.network()
    model: AnyNetwork = network_class(wanted).from_pretrained(folder, dtype=torch.float32)
    if difference := first_difference(model.config, wanted):
        key, found, wanted = difference
        raise ValueError(f"{folder} is another network than [model]: {key} is {found}, not {wanted}")
    return model


def start_at(step: int, parts: Sequence[TrainingConfig], out: Path, model: AnyNetwork) -> None:
    """Write a checkpoint to `out` with the model's weights at a given step of the run, without optimizer states."""
    part = next((part for part in parts if part.optimizer.total_steps > step), None)
    if step < 0 or part is None:
        raise ValueError(f"--first-step {step} must lie in the run: 0 ... {parts[-1].optimizer.total_steps - 1}")
    facts = {"step": step, "seconds": 0.0, "config": dataclasses.asdict(part)}
    save_checkpoint(out / "checkpoint", model, [], facts)


def export(out: Path, folder: Path) -> None:
    """Write the weights of `out/checkpoint` as an fp16 model folder for `from_pretrained`.

    Raises ValueError if a weight does not fit in fp16, and the errors of `load_checkpoint`.
    """
    config = read_config(out / "checkpoint").network()
    model: AnyNetwork = network_class(config)(config)
    load_checkpoint(out / "checkpoint", model)
    largest = max(parameter.abs().max().item() for parameter in model.parameters())
    if largest > torch.finfo(torch.float16).max:
        raise ValueError(f"a weight of {largest:g} does not fit into fp16")
    model.half().save_pretrained(folder)
