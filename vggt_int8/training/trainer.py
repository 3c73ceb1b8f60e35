"""Training on rendered scenes with known geometry: the model, data and losses for `loop.Loop`."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from vggt_int8.model.families import AnyNetwork
from vggt_int8.scenes import SceneBatch, SceneDescription, render_description
from vggt_int8.training.checkpoint import config_in
from vggt_int8.training.config import TrainingConfig
from vggt_int8.training.data import training_descriptions
from vggt_int8.training.loop import Loop, settings_of
from vggt_int8.training.losses import scene_losses
from vggt_int8.training.networks import first_difference
from vggt_int8.training.start import fresh_model
from vggt_int8.training.teacher import find_teacher, overheard
from vggt_int8.training.validation import validate


class Trainer(Loop):
    """One run. `out` gets `checkpoint/` and `log.jsonl`; an existing checkpoint is resumed."""

    config: TrainingConfig

    def __init__(
        self, config: TrainingConfig, out: Path, model: AnyNetwork | None = None, *, quiet: bool = False
    ) -> None:
        """`model`: train this one instead of a fresh one. quiet: no progress on stderr."""
        super().__init__(config, out, fresh_model(config) if model is None else model, quiet=quiet)
        self.teacher = find_teacher(config, self.device)

    def items(self, last: int) -> Iterator[SceneDescription]:
        accelerator = self.accelerator
        return training_descriptions(
            self.config.data, self.config.seed, self.step, last, accelerator.process_index, accelerator.num_processes
        )

    def prepare(self, item: SceneDescription) -> SceneBatch:
        data = self.config.data
        return render_description(
            item.to(self.device),
            supersample=data.supersample,
            tracks=data.tracks,
            compiled="render" in self.config.compile,
        )

    def losses(self, batch: SceneBatch) -> dict[str, Tensor]:
        points = {} if batch.query_points is None else {"query_points": batch.query_points}
        with self.autocast(), overheard(self.network.aggregator) as tokens:
            output = self.model(batch.images, **points, frames_chunk_size=None)
            others = {} if self.teacher is None else {"teacher": self.teacher.loss(batch.images, tokens)}
        return scene_losses(output, batch, self.config.loss, others)

    def score(self, scenes: int | None) -> dict[str, dict[str, float]]:
        return validate(self.network, self.config.data, self.config.validation, scenes=scenes)

    def check_resumable(self, facts: dict[str, Any]) -> None:
        """Raises ValueError if the checkpoint belongs to another network, and reports other settings that have
        changed.
        """
        stored = config_in(facts, self.checkpoint)
        if difference := first_difference(stored.network(), self.config.network()):
            key, found, wanted = difference
            raise ValueError(f"{self.checkpoint} is of a network with {key} {found}, not {wanted}")
        before, now = (settings_of(asdict(config)) for config in (stored, self.config))
        for key in sorted(now):
            if before[key] != now[key]:
                self.console.print(f"{key} was {before[key]}, is {now[key]} from here on", highlight=False)
