"""The training loop: one process on a CPU or GPU, or several under `accelerate launch`.

A run's whole state is its step, the weights and the optimizers' moments, since data and schedule follow from the step.
So a run may be stopped at any moment and resumes from its last checkpoint, on another machine or another number of
GPUs. (A step's scenes are per process, so a run on more GPUs sees more scenes per step.)

Subclasses define what is learned, and from what: `trainer.Trainer`, `distiller.Distiller`.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from vggt_int8.disk import check_place
from vggt_int8.files import append_json_line
from vggt_int8.model.families import AnyNetwork
from vggt_int8.training.captured import CapturedBackward, average_gradients
from vggt_int8.training.checkpoint import find_checkpoint, least_bytes, load_checkpoint, read_facts, save_checkpoint
from vggt_int8.training.log import LOG
from vggt_int8.training.processes import make_accelerator
from vggt_int8.training.sections import RunConfig
from vggt_int8.training.start import build_optimizers, build_schedule, prepare_network

LEARNING_BROKE = "The last checkpoint is intact; lower the learning rate or the clip norm and resume"


@dataclass
class RunLimits:
    """When to stop and what to do then."""

    max_minutes: float | None = None  # wall clock, counted from the start of `train`
    max_steps: int | None = None  # of this call
    save_minutes: float = 4.0
    validate_at_end: bool = True


class Loop(ABC):
    """One run over a network. `out` gets `checkpoint/` and `log.jsonl`; an existing checkpoint there is resumed."""

    exact_moments = False  # whether the optimizers' moments are kept to the last bit, or in 8 bits
    reserve = 40.0  # seconds kept at the end of a limited run for the last validation and the checkpoint

    def __init__(self, config: RunConfig, out: Path, network: AnyNetwork, *, quiet: bool = False) -> None:
        """quiet: no progress on stderr."""
        self.started = time.monotonic()
        self.config, self.out = config, out
        # Autocast is entered in `train_step`: accelerate's own would patch the model's forward for good, and
        # validation could no longer run in fp32.
        self.accelerator = make_accelerator()
        self.device = self.accelerator.device
        self.console = Console(stderr=True, quiet=quiet or not self.accelerator.is_main_process, soft_wrap=True)
        self.step, self.seconds_before = 0, 0.0
        # The model itself: without DDP's wrapper, and with the names of the checkpoint.
        self.network: AnyNetwork = network.to(self.device)
        prepare_network(self.network, config)  # before moments are loaded: they take the parameters' memory layout
        self.optimizers = build_optimizers(self.network, config.optimizer)
        if find_checkpoint(self.accelerator, self.checkpoint):
            self.check_resumable(read_facts(self.checkpoint))
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

    @abstractmethod
    def items(self, last: int) -> Iterator[Any]:
        """The data of each step up to `last`, in order, from this run's step on, for this process."""

    @abstractmethod
    def prepare(self, item: Any) -> Any:
        """A step's batch on the device: a dataclass of tensors, one of which is `images`."""

    @abstractmethod
    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Terms of the loss and "total", scalars; computed with `self.model`, which may wrap the network."""

    @abstractmethod
    def score(self, scenes: int | None) -> dict[str, dict[str, float]]:
        """{"4 views": {name: value}, ...} of the network on data that it does not train on, on the main process."""

    @abstractmethod
    def check_resumable(self, facts: dict[str, Any]) -> None:
        """Raises ValueError if the checkpoint with these facts belongs to another run; reports changed settings."""

    def remembered(self) -> dict[str, Any]:
        """Contents of a checkpoint beside step, time and configuration."""
        return {}

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of all calls of this run so far."""
        return self.seconds_before + time.monotonic() - self.started

    def train(self, limits: RunLimits) -> str:
        """Train until the configured steps are done or a limit is met; returns which. Saves at the end.

        Raises OSError before the first step if there is no room for a checkpoint.
        """
        config = self.config
        if self.accelerator.is_main_process:
            check_place(self.checkpoint, least_bytes(self.network, exact=self.exact_moments))
        self.out.mkdir(parents=True, exist_ok=True)
        last = config.optimizer.total_steps
        if limits.max_steps is not None:
            last = min(last, self.step + limits.max_steps)
        self.log({"kind": "start", "step": self.step, "device": _device_name(self.device), **_versions()})
        meter, saved = _Meter(config.data.frames_per_step * self.accelerator.num_processes), time.monotonic()
        self.model.train()
        reason = "all steps are done" if last == config.optimizer.total_steps else "max_steps reached"
        with self._progress(last) as advance:
            for item in self.items(last):
                losses, norm = self.train_step(item)
                advance(self.step)
                if self.step % config.log_steps == 0:
                    self._log_step(losses, norm, meter)
                if self.step % config.validation.every_steps == 0 and self.step < last:
                    self.validate(scenes=min(32, config.validation.scenes))
                    meter.restart()
                # Every process must stop at the same step, so the first one's clock decides.
                now = time.monotonic()
                clock = self._agree([now - self.started + self.reserve, now - saved])
                if clock[1] > 60 * limits.save_minutes:
                    self.save()
                    saved = time.monotonic()
                if limits.max_minutes is not None and clock[0] > 60 * limits.max_minutes:
                    reason = "the time is over (max_minutes)"
                    break
        self.save()
        if limits.validate_at_end:
            self.validate()
        return reason

    def train_step(self, item: Any) -> tuple[dict[str, Tensor], Tensor]:
        """Prepare, predict, learn. Returns losses and gradient norm on the device, valid until the next step."""
        losses = self.forward_backward(self.prepare(item))
        if self.captured and self.accelerator.num_processes > 1:
            average_gradients(self.network.parameters())
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip_norm)
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return losses, norm

    def _forward_backward(self, batch: Any) -> dict[str, Tensor]:
        """Losses of a batch, detached; their gradients are left in the parameters."""
        losses = self.losses(batch)
        self.accelerator.backward(losses["total"])
        return {name: value.detach() for name, value in losses.items()}

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.mixed_precision == "bf16")

    def validate(self, scenes: int | None = None) -> dict[str, dict[str, float]] | None:
        """Score, on the main process; logs and prints. None on the others."""
        results = None
        if self.accelerator.is_main_process:
            results = self.score(scenes)
            count = scenes or self.config.validation.scenes
            self.log({"kind": "validation", "step": self.step, "scenes": count, **results})
            for views, scores in results.items():
                shown = "  ".join(f"{name} {value:.4g}" for name, value in scores.items())
                self.console.print(f"held-out, {count} scenes x {views}:  {shown}", highlight=False)
        self.accelerator.wait_for_everyone()
        return results

    def save(self) -> None:
        if self.accelerator.is_main_process:
            facts = {"step": self.step, "seconds": self.seconds, "config": asdict(self.config), **self.remembered()}
            save_checkpoint(self.checkpoint, self.network, self.optimizers, facts, exact=self.exact_moments)
        self.accelerator.wait_for_everyone()

    def log(self, entry: dict[str, Any]) -> None:
        """One line in the log, on the main process."""
        if self.accelerator.is_main_process:
            append_json_line(self.out / LOG, {**entry, "minutes": round(self.seconds / 60, 3)})

    def _log_step(self, losses: dict[str, Tensor], norm: Tensor, meter: "_Meter") -> None:
        values = {name: value.item() for name, value in losses.items()}
        if not math.isfinite(values["total"]) or not math.isfinite(norm.item()):
            raise FloatingPointError(
                f"step {self.step}: losses {values}, gradient norm {norm.item()}. {LEARNING_BROKE}"
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


def settings_of(config: dict[str, Any]) -> dict[str, Any]:
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
