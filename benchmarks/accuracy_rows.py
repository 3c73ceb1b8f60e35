"""A row of the table of accuracy: one recipe on one kind of model, scored and kept as a file.

Scores, intervals and the proof that quantizers are active are those of `vggt-int8 eval` (`vggt_int8.scorecard`), of
which this is a loop over variants. What decides a row stands in its file: a row is made anew when that has changed.
"""

import json
import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.accuracy_models import folder_of
from vggt_int8 import VGGTInt8, load_recipe
from vggt_int8.export.repeat import identify_model
from vggt_int8.files import write_json
from vggt_int8.plain_data import finite
from vggt_int8.recipe import Recipe
from vggt_int8.scorecard.cache import Predictions
from vggt_int8.scorecard.data import RenderedScenes
from vggt_int8.scorecard.rows import describe, export, predict
from vggt_int8.scorecard.scores import Protocol
from vggt_int8.scorecard.summary import summarize
from vggt_int8.training.qat import train_qat

FP32, OUTPUTS = "fp32", ("pose_enc", "depth")
KEPT = ("auc_30", "auc_5", "auc_3", "abs_rel")  # metrics of which a row keeps each scene's value
TRAINED = {"int8_qat": "int8_static_rotated"}  # rows that are trained under the rounding of a recipe
TRAINING = Path(__file__).parent / "accuracy_qat.toml"


@dataclass(frozen=True)
class Settings:
    """What decides a row beside its variant and recipe. size: (H, W) of images."""

    out: Path
    size: tuple[int, int]
    scenes: int
    views: int
    pixel_aspect: tuple[float, float]
    calibration: int
    device: str
    backend: str

    def rendered(self, split: str, scenes: int) -> RenderedScenes:
        folder = self.out / "scenes"
        return RenderedScenes(
            scenes, self.views, self.size, split, self.device, pixel_aspect=self.pixel_aspect, folder=folder
        )

    def identity(self) -> dict[str, Any]:
        data = self.rendered("held_out", self.scenes).identity()
        return {"data": data, "scenes": self.scenes, "device": torch.device(self.device).type, "format_version": 1}


@dataclass(frozen=True)
class Job:
    """A row on one kind of model: a recipe (a shipped name or a .toml file), of `TRAINED`, a checkpoint, or fp32."""

    kind: str
    label: str
    checkpoint: str | None = None


def row_file(settings: Settings, job: Job) -> Path:
    name = job.label if job.checkpoint or not job.label.endswith(".toml") else Path(job.label).stem
    return settings.out / "rows" / job.kind.replace(":", "_") / f"{name}.json"


def is_done(settings: Settings, job: Job) -> bool:
    """A row whose recipe, checkpoint or backend has changed since is made anew."""
    path = row_file(settings, job)
    return path.is_file() and json.loads(path.read_text(encoding="utf-8"))["of"] == what_decides(settings, job)


def what_decides(settings: Settings, job: Job) -> dict[str, Any]:
    if job.label == FP32:
        return {"recipe": None}
    if job.checkpoint is not None:
        return {"checkpoint": identify_model(job.checkpoint)["value"], "backend": settings.backend}
    recipe = recipe_of(settings, job)
    of: dict[str, Any] = {"recipe": json.loads(json.dumps(recipe.to_dict())), "backend": settings.backend}
    if job.label in TRAINED:
        of["training"] = TRAINING.read_text(encoding="utf-8")
    return {**of, "calibration_scenes": settings.calibration} if recipe.needs_calibration else of


def recipe_of(settings: Settings, job: Job) -> Recipe:
    """A training is calibrated with all images that there are for it."""
    if job.label in TRAINED:
        return replace(load_recipe(TRAINED[job.label]), calibration_samples=settings.calibration * settings.views)
    return load_recipe(job.label)


@cache
def scenes_of(settings: Settings, split: str, scenes: int) -> RenderedScenes:
    """Read once a process, for all of its rows."""
    return settings.rendered(split, scenes)


@dataclass(frozen=True)
class _Computed:
    """A row of `summarize` whose outputs are made as it asks for them, and are not kept."""

    label: str
    model: VGGTInt8
    data: RenderedScenes
    identity: dict[str, Any]

    def facts(self) -> dict[str, Any]:
        return describe(self.model, None, self.data)

    def read(self, index: int) -> dict[str, Tensor]:
        return predict(self.model, self.data.scene(index), OUTPUTS)


def make_row(settings: Settings, job: Job) -> float:
    """Write one row; how many seconds it took."""
    start = time.perf_counter()
    data = scenes_of(settings, "held_out", settings.scenes)
    plain = Predictions(settings.out / "predictions" / job.kind.replace(":", "_"), FP32, settings.identity())
    model = load(settings, job)
    if job.label == FP32:
        plain.check()
        export(model, plain, data, outputs=OUTPUTS)
        plain.write_facts(describe(model, None, data))
        (entry,) = summarize([plain], data, Protocol(points=0))
    else:
        entry = summarize([plain, _Computed(job.label, model, data, {})], data, Protocol(points=0))[1]
    entry["scenes"] = {name: entry["scenes"][name] for name in KEPT}
    for name in ("identity", "sqnr_db", "calibration"):
        del entry[name]
    seconds = time.perf_counter() - start
    path = row_file(settings, job)
    path.parent.mkdir(parents=True, exist_ok=True)
    own = {"kind": job.kind, "label": path.stem, "dtype": str(model.dtype).removeprefix("torch."), "seconds": seconds}
    write_json(path, finite({**entry, **own, "of": what_decides(settings, job)}))
    return seconds


def load(settings: Settings, job: Job) -> VGGTInt8:
    source, options = str(folder_of(job.kind, settings.out)), dict[str, Any](device_map=settings.device)
    if job.label == FP32:
        options["dtype"] = torch.float32
    else:
        options["backend"] = settings.backend
        if job.checkpoint is not None:
            source = job.checkpoint
        elif job.label in TRAINED:
            source = train(settings, job)
        else:
            options["recipe"] = recipe = load_recipe(job.label)
            if recipe.needs_calibration:
                options |= {"calibration": calibration_images(settings), "on_call": lambda *_: None}
    return VGGTInt8.from_pretrained(source, **options).eval()


def train(settings: Settings, job: Job) -> str:
    """The folder of a trained checkpoint; a training that was stopped goes on."""
    out = settings.out / "qat" / job.kind.replace(":", "_")
    train_qat(
        str(folder_of(job.kind, settings.out)),
        ["synthetic"],
        out,
        recipe_of(settings, job),
        calibration=calibration_images(settings),
        config=TRAINING,
        quiet=True,
    )
    return str(out)


def calibration_images(settings: Settings) -> list[Tensor]:
    """[S, 3, H, W] of each scene, of a split that no row is scored on."""
    return [scene.images for scene in scenes_of(settings, "calibration", settings.calibration)]
