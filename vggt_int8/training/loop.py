"""The training loop: one process on a CPU or GPU, or several under `accelerate launch`.

A run's whole state is its step, the weights and the optimizers' moments: data and schedule follow from the step. So a
run may be stopped at any moment and goes on from its last checkpoint, on another machine or another number of GPUs.
(The step's scenes are spread over the processes, so a run on more GPUs sees more scenes a step.)
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from vggt_int8.files import append_json_line
from vggt_int8.model import VGGT
from vggt_int8.scenes import SceneBatch, SceneDescription, render_description
from vggt_int8.training.captured import CapturedBackward, average_gradients
from vggt_int8.training.checkpoint import find_checkpoint, load_checkpoint, read_config, save_checkpoint
from vggt_int8.training.config import TrainingConfig, first_difference
from vggt_int8.training.data import training_descriptions
from vggt_int8.training.log import LOG
from vggt_int8.training.losses import scene_losses
from vggt_int8.training.start import build_optimizers, build_schedule, fresh_model, prepare_network
from vggt_int8.training.validation import validate

VALIDATION_RESERVE = 40.0  # seconds kept at the end of a limited run for the last validation and the checkpoint


@dataclass
class RunLimits:
    """When to stop and what to do then."""

    max_minutes: float | None = None  # wall clock, counted from the start of `train`
    max_steps: int | None = None  # of this call
    save_minutes: float = 4.0
    validate_at_end: bool = True


class Trainer:
    """One run. `out` gets `checkpoint/` and `log.jsonl`; a checkpoint found there is resumed."""

    def __init__(self, config: TrainingConfig, out: Path, model: VGGT | None = None, *, quiet: bool = False) -> None:
        """`model`: train this one (for example one prepared for QAT) instead of a fresh one. quiet: no progress on
        stderr."""
        self.started = time.monotonic()
        self.config, self.out = config, out
        # Autocast is entered in `train_step`: accelerate's own would patch the model's forward for good, and
        # validation could no longer run in fp32.
        self.accelerator = Accelerator(mixed_precision="no")
        self.device = self.accelerator.device
        self.console = Console(stderr=True, quiet=quiet or not self.accelerator.is_main_process, soft_wrap=True)
        self.step, self.seconds_before = 0, 0.0
        model = fresh_model(config) if model is None else model
        # The model itself: without DDP's wrapper, and with the names of the checkpoint.
        self.network: VGGT = model.to(self.device)
        prepare_network(self.network, config)  # before moments are loaded: they take the parameters' memory layout
        self.optimizers = build_optimizers(self.network, config.optimizer)
        if find_checkpoint(self.accelerator, self.checkpoint):
            self._check_resumable()
            facts = load_checkpoint(self.checkpoint, self.network, self.optimizers)
            self.step, self.seconds_before = facts["step"], facts["seconds"]
        if self.step < config.optimizer.first_step:
            raise ValueError(
                f"the schedule begins at step {config.optimizer.first_step}, and {out} is at step {self.step}"
            )
        self.schedules = [build_schedule(optimizer, config.optimizer, self.step) for optimizer in self.optimizers]
        self.captured = config.cuda_graph and self.device.type == "cuda"
        self.forward_backward = self._forward_backward
        if self.captured:
            # Without DDP, whose reductions would be part of the recording: gradients are averaged after the replay.
            self.model: nn.Module = self.network
            if self.accelerator.num_processes > 1:
                for tensor in self.network.state_dict().values():
                    torch.distributed.broadcast(tensor, src=0)
            self.forward_backward = CapturedBackward(self._forward_backward, self.network.parameters())
        else:
            self.model = self.accelerator.prepare(self.network)

    @property
    def checkpoint(self) -> Path:
        return self.out / "checkpoint"

    def _check_resumable(self) -> None:
        """Raises ValueError if the checkpoint is of another network, and tells what else is set differently now."""
        stored = read_config(self.checkpoint)
        if difference := first_difference(stored.vggt(), self.config.vggt()):
            key, found, wanted = difference
            raise ValueError(f"{self.checkpoint} is of a network with {key} {found}, not {wanted}")
        before, now = (_settings(asdict(config)) for config in (stored, self.config))
        for key in sorted(now):
            if before[key] != now[key]:
                self.console.print(f"{key} was {before[key]}, is {now[key]} from here on", highlight=False)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of all calls of this run so far."""
        return self.seconds_before + time.monotonic() - self.started

    def train(self, limits: RunLimits) -> str:
        """Train until the configured steps are done or a limit is met; returns which. Saves at the end."""
        config = self.config
        self.out.mkdir(parents=True, exist_ok=True)
        last = config.optimizer.total_steps
        if limits.max_steps is not None:
            last = min(last, self.step + limits.max_steps)
        self.log({"kind": "start", "step": self.step, "device": _device_name(self.device), **_versions()})
        meter, saved = _Meter(config.data.frames_per_step * self.accelerator.num_processes), time.monotonic()
        self.model.train()
        reason = "all steps are done" if last == config.optimizer.total_steps else "max_steps reached"
        with self._progress(last) as advance:
            for description in self._descriptions(last):
                losses, norm = self.train_step(description)
                advance(self.step)
                if self.step % config.log_steps == 0:
                    self._log_step(losses, norm, meter)
                if self.step % config.validation.every_steps == 0 and self.step < last:
                    self.validate(scenes=min(32, config.validation.scenes))
                    meter.restart()
                # Every process must leave at the same step, so the first one's clock decides.
                clock = self._agree([time.monotonic() - self.started, time.monotonic() - saved])
                if clock[1] > 60 * limits.save_minutes:
                    self.save()
                    saved = time.monotonic()
                if limits.max_minutes is not None and clock[0] > 60 * limits.max_minutes - VALIDATION_RESERVE:
                    reason = "the time is over (max_minutes)"
                    break
        self.save()
        if limits.validate_at_end:
            self.validate()
        return reason

    def train_step(self, description: SceneDescription) -> tuple[dict[str, Tensor], Tensor]:
        """Render, predict, learn. Returns losses and gradient norm on the device, valid until the next step."""
        batch = self.render(description)
        losses = self.forward_backward(batch)
        if self.captured and self.accelerator.num_processes > 1:
            average_gradients(self.network.parameters())
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip_norm)
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return losses, norm

    def _forward_backward(self, batch: SceneBatch) -> dict[str, Tensor]:
        """Losses of a batch, detached; their gradients are left in the parameters."""
        with self.autocast():
            output = self.model(batch.images, query_points=batch.query_points, frames_chunk_size=None)
        losses = scene_losses(output, batch, self.config.loss)
        self.accelerator.backward(losses["total"])
        return {name: value.detach() for name, value in losses.items()}

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.mixed_precision == "bf16")

    def render(self, description: SceneDescription) -> SceneBatch:
        data = self.config.data
        return render_description(
            description.to(self.device),
            supersample=data.supersample,
            tracks=data.tracks,
            compiled="render" in self.config.compile,
        )

    def validate(self, scenes: int | None = None) -> dict[str, dict[str, float]] | None:
        """Score on held-out scenes, on the main process; logs and prints. None on the others."""
        results = None
        if self.accelerator.is_main_process:
            results = validate(self.network, self.config.data, self.config.validation, scenes=scenes)
            count = scenes or self.config.validation.scenes
            self.log({"kind": "validation", "step": self.step, "scenes": count, **results})
            for views, scores in results.items():
                shown = "  ".join(f"{name} {value:.4g}" for name, value in scores.items())
                self.console.print(f"held-out, {count} scenes x {views}:  {shown}", highlight=False)
        self.accelerator.wait_for_everyone()
        return results

    def save(self) -> None:
        if self.accelerator.is_main_process:
            facts = {"step": self.step, "seconds": self.seconds, "config": asdict(self.config)}
            save_checkpoint(self.checkpoint, self.network, self.optimizers, facts)
        self.accelerator.wait_for_everyone()

    def log(self, entry: dict[str, Any]) -> None:
        """One line in the log, on the main process."""
        if self.accelerator.is_main_process:
            append_json_line(self.out / LOG, {**entry, "minutes": round(self.seconds / 60, 3)})

    def _descriptions(self, last: int) -> Iterator[SceneDescription]:
        accelerator = self.accelerator
        return training_descriptions(
            self.config.data, self.config.seed, self.step, last, accelerator.process_index, accelerator.num_processes
        )

    def _log_step(self, losses: dict[str, Tensor], norm: Tensor, meter: "_Meter") -> None:
        values = {name: value.item() for name, value in losses.items()}
        if not math.isfinite(values["total"]) or not math.isfinite(norm.item()):
            raise FloatingPointError(
                f"step {self.step}: losses {values}, gradient norm {norm.item()}. The last checkpoint is intact; "
                f"lower the learning rate or the clip norm and resume"
            )
        rate = self.schedules[0].get_last_lr()[0]
        speed = meter.frames_per_second(self.config.log_steps)
        entry = {"kind": "train", "step": self.step, **values, "grad_norm": norm.item(), "learning_rate": rate}
        self.log({**entry, "frames_per_second": round(speed, 1)})
        parts = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        self.console.print(
            f"step {self.step}  {parts}  norm {norm.item():.2f}  rate {rate:.2e}  {speed:.0f} frames/s", highlight=False
        )

    def _agree(self, values: list[float]) -> list[float]:
        if self.accelerator.num_processes == 1:
            return values
        shared = torch.tensor(values, device=self.device)
        torch.distributed.broadcast(shared, src=0)
        return shared.tolist()

    @contextmanager
    def _progress(self, last: int) -> Iterator[Any]:
        """A bar on a terminal; elsewhere the log lines are enough."""
        if not self.console.is_terminal:
            yield lambda step: None
            return
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task("training", total=last, completed=self.step)
            yield lambda step: progress.update(task, completed=step)


class _Meter:
    """Frames a second between two calls."""

    def __init__(self, frames_per_step: int) -> None:
        self.frames_per_step = frames_per_step
        self.restart()

    def restart(self) -> None:
        self.since = time.monotonic()

    def frames_per_second(self, steps: int) -> float:
        seconds = time.monotonic() - self.since
        self.restart()
        return steps * self.frames_per_step / seconds


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration but for its model: {"section.key": value}."""
    sections = {name: section for name, section in config.items() if name != "model" and isinstance(section, dict)}
    single = {name: value for name, value in config.items() if not isinstance(value, dict)}
    return single | {f"{name}.{key}": value for name, section in sections.items() for key, value in section.items()}


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _versions() -> dict[str, str]:
    import accelerate
    import transformers

    return {"torch": torch.__version__, "accelerate": accelerate.__version__, "transformers": transformers.__version__}
