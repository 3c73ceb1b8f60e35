"""Quantization-aware training: a network under INT8 rounding learns to match its own floating-point version."""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vggt_int8.calibration import facts_problem
from vggt_int8.eval.metrics import ScoreKeeper
from vggt_int8.model.families import AnyNetwork
from vggt_int8.model.layers import LayerScale
from vggt_int8.plain_data import shown
from vggt_int8.quant.fake import fake_layers
from vggt_int8.scenes import SceneBatch
from vggt_int8.training.checkpoint import find_checkpoint, load_checkpoint, read_facts, save_checkpoint
from vggt_int8.training.distill import distill_losses, predict
from vggt_int8.training.loop import LEARNING_BROKE, Loop, RunLimits, settings_of
from vggt_int8.training.qat_config import QatConfig
from vggt_int8.training.views import Source, Views

NOT_DISTILLED = {"track", "text"}  # heads whose outputs no loss reads: they are quantized as they are
CALIBRATION = "calibration"  # what a checkpoint calls its facts of calibration
# Settings that say what a loss of the validation is: losses before and after another one could not be compared.
MEASURE = {"validation.scenes", "validation.views", "validation.frames_per_batch", "data.size", "data.supersample"}


class Distiller(Loop):
    """One run. `out` gets `checkpoint/`, `log.jsonl` and `best/`: the weights with the best validation loss, including
    the initial ones, and that loss.

    Validation measures the training objective, the distance to the teacher, so it needs no ground truth; if that is
    known, poses and depth are scored as well. On one device, a resumed run is bit-identical to one that never stopped.
    """

    config: QatConfig
    exact_moments = True

    def __init__(
        self,
        config: QatConfig,
        out: Path,
        student: AnyNetwork,
        teacher: AnyNetwork,
        source: Source,
        origin: dict[str, Any],
        seen: dict[str, Any] | None = None,
        *,
        quiet: bool = False,
    ) -> None:
        """student: with fake-quantized layers, see `quant.fake`.
        teacher: the same network without them.
        origin: plain data that identifies what both were made of; a resumed checkpoint must have the same.
        seen: facts of the student's calibration, which its checkpoints keep for a run that is resumed.
        """
        if config.cuda_graph and any(fake.scheme.outlier_threshold for _, fake in fake_layers(student)):
            raise ValueError(
                "cuda_graph = true cannot record layers with an outlier_threshold, whose columns depend on the values: "
                "leave it out, or choose another recipe"
            )
        choose_parameters(student, config)
        if config.gradient_checkpointing:
            # transformers gives it another name from 5.23 on.
            name = "activation_checkpointing_enable"
            enable = getattr(student, name if hasattr(student, name) else "gradient_checkpointing_enable")
            enable({"use_reentrant": False})
        self.source, self.origin, self.seen = source, origin, seen
        super().__init__(config, out, student, quiet=quiet)
        # In training mode it tells the poses of all refinements; it has nothing that is random.
        self.teacher = teacher.to(self.device).requires_grad_(False).train()
        self.best = self._read_best()
        for remark in source.remarks(config):
            self.console.print(remark, highlight=False)

    @property
    def best_folder(self) -> Path:
        return self.out / "best"

    def train(self, limits: RunLimits) -> str:
        if self.step == 0:
            self.validate()  # of the network as it is quantized without any training
        return super().train(limits)

    def items(self, last: int) -> Iterator[Any]:
        accelerator = self.accelerator
        return self.source.items(self.config, self.step, last, accelerator.process_index, accelerator.num_processes)

    def prepare(self, item: Any) -> Views:
        return self.source.prepare(item, self.config, self.device)

    def losses(self, batch: Views) -> dict[str, Tensor]:
        with torch.no_grad():
            wanted = predict(self.teacher, self.teacher, batch.images)
        with self.autocast():
            got = predict(self.model, self.network, batch.images)
        return distill_losses(got, wanted, self.config.loss)

    @torch.no_grad()
    def score(self, scenes: int | None) -> dict[str, dict[str, float]]:
        results = {}
        for views in self.config.validation.views:
            kept, sums, count, seen = ScoreKeeper(), dict[str, float](), 0, views
            for batch in self.source.held_out(self.config, views, self.device):
                wanted, got = (predict(net, net, batch.images) for net in (self.teacher, self.network))
                for name, value in distill_losses(got, wanted, self.config.loss).items():
                    sums[name] = sums.get(name, 0.0) + value.item() * len(batch.images)
                count, seen = count + len(batch.images), batch.images.shape[1]
                if isinstance(batch, SceneBatch):
                    kept.add_output(got.output, batch)
            results[f"{seen} views"] = {**{name: value / count for name, value in sums.items()}, **kept.scores()}
        return results

    def validate(self, scenes: int | None = None) -> dict[str, dict[str, float]] | None:
        """Scores all validation scenes, so that losses are comparable; keeps the weights if they are the best."""
        began = time.monotonic()
        results = super().validate()
        self.reserve = 5 + 2 * (time.monotonic() - began)  # the last one writes a checkpoint, too
        if results is None:
            return None
        total = sum(row["total"] for row in results.values()) / len(results)
        if not math.isfinite(total):
            raise FloatingPointError(f"step {self.step}: the loss of the validation is {total}. {LEARNING_BROKE}")
        if self.best is None or total < self.best["loss"]:
            start = total if self.best is None else self.best["start_loss"]
            self.best = {"step": self.step, "loss": total, "start_loss": start}
            save_checkpoint(self.best_folder, self.network, [], {**self.best, "origin": self.origin})
        return results

    def restore_best(self) -> dict[str, Any]:
        """Load the best weights; returns their step and loss, and the loss at the start."""
        if self.best is None:
            raise ValueError(f"{self.best_folder} holds no weights: nothing was validated yet")
        load_checkpoint(self.best_folder, self.network)
        return self.best

    def check_resumable(self, facts: dict[str, Any]) -> None:
        for line in changes_since(facts, self.checkpoint, self.origin, self.config):
            self.console.print(line, highlight=False)

    def remembered(self) -> dict[str, Any]:
        return {"origin": self.origin, CALIBRATION: self.seen}

    def _read_best(self) -> dict[str, Any] | None:
        if self.step == 0 or not find_checkpoint(self.accelerator, self.best_folder):
            return None
        facts = read_facts(self.best_folder)
        if not all(isinstance(facts.get(key), int | float) for key in ("loss", "start_loss")):
            raise ValueError(f"{self.best_folder / 'trainer.json'} is damaged: it has no loss")
        return {key: facts[key] for key in ("step", "loss", "start_loss")}


def changes_since(facts: dict[str, Any], checkpoint: Path, origin: dict[str, Any], config: QatConfig) -> list[str]:
    """What is set otherwise for a run that goes on from a checkpoint with these facts, in words.

    Raises ValueError if the checkpoint is of another run, or if losses of the validation could not be compared with
    those before, by which the best weights are chosen.
    """
    way_out = "go on with what it was made of, or name another --out"
    made_of = facts.get("origin")
    for key, now in origin.items():
        before = made_of.get(key) if isinstance(made_of, dict) else None
        if before != now:
            raise ValueError(f"{checkpoint} is of another {key} ({shown(before)}, not {shown(now)}): {way_out}")
    seen = facts.get(CALIBRATION)
    if seen is not None and (problem := facts_problem(seen)) is not None:
        raise ValueError(f"{checkpoint / 'trainer.json'} is damaged: in its calibration {problem}")
    stored = facts.get("config")
    if not isinstance(stored, dict):
        raise ValueError(f"{checkpoint / 'trainer.json'} is damaged: its config is {shown(stored)}, not a table")
    before, now = settings_of(stored), settings_of(_as_json(asdict(config)))
    changed = [key for key in sorted(now) if before.get(key) != now[key]]
    for key in changed:
        if key in MEASURE or key.startswith("loss."):
            raise ValueError(
                f"{key} was {shown(before.get(key))} in {checkpoint}, is {shown(now[key])}: losses of the validation, "
                f"by which the best weights are chosen, could not be compared. {way_out[0].upper()}{way_out[1:]}"
            )
    return [f"{key} was {before.get(key)}, is {now[key]} from here on" for key in changed]


def choose_parameters(network: AnyNetwork, config: QatConfig) -> None:
    """Enable gradients for the parameters that `config` trains, and for no others."""
    asked = {parameter for parameter in network.parameters() if parameter.requires_grad}
    scales = {fake.log_input_scale for _, fake in fake_layers(network)}
    small = {
        parameter
        for module in network.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(module, nn.LayerNorm | LayerScale) or name == "bias"
    }
    untouched = {
        parameter
        for head in set(network.present_heads) & NOT_DISTILLED
        for parameter in network.get_submodule(network.head_modules[head]).parameters()
    }
    for parameter in asked:
        chosen = config.scales == "learned" if parameter in scales else config.trained == "all" or parameter in small
        parameter.requires_grad_(chosen and parameter not in untouched)


def _as_json(value: Any) -> Any:
    """As JSON gives it back: tuples become lists."""
    if isinstance(value, dict):
        return {key: _as_json(entry) for key, entry in value.items()}
    return [_as_json(entry) for entry in value] if isinstance(value, list | tuple) else value
