"""One row of the table: a model as requested, and its predictions, made if they do not exist yet."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vggt_int8.eval.active import int8_layer_names
from vggt_int8.eval.metrics import layer_sqnr
from vggt_int8.scorecard.cache import OUTPUTS, Predictions, folder_name
from vggt_int8.scorecard.data import DataSet, TrueScene, first_scenes

SQNR_SCENES = 2  # scenes that single layers are compared on
TRACKED = 16  # points that the track head follows meanwhile


@dataclass(frozen=True)
class Row:
    """label: for people, unlike all others. recipe: what it is quantized by while it is loaded, or None."""

    label: str
    model: str
    recipe: str | None
    dtype: str
    backend: str

    def predictions(self, out: Path, identity: Mapping[str, Any]) -> Predictions:
        own = {"dtype": self.dtype, "backend": self.backend}
        return Predictions(out / "predictions" / folder_name(self.label), self.label, {**own, **identity})


def make_rows(models: list[str], recipes: list[str], dtype: str | None, backend: str, default_dtype: str) -> list[Row]:
    """A row for each model, and one for the first model under each recipe. The first computes in fp32: it is what the
    others are measured against. Raises ValueError for a model or a recipe that is named twice."""
    wanted: list[tuple[str, str | None]] = [*((model, None) for model in models), *((models[0], r) for r in recipes)]
    if twice := next((pair for pair in wanted if wanted.count(pair) > 1), None):
        raise ValueError(f"{twice[1] or twice[0]} is named twice: name every model and every recipe once")
    rows = []
    for index, (model, recipe) in enumerate(wanted):
        label = model if recipe is None else f"{model}, {Path(recipe).stem}"
        rows.append(Row(label, model, recipe, (dtype or default_dtype) if index else "fp32", backend))
    labels = [row.label for row in rows]
    if same := next((label for label in labels if labels.count(label) > 1), None):
        raise ValueError(f"two rows would be called {same!r}: name one of the recipes otherwise")
    return rows


def is_complete(predictions: Predictions, data: DataSet) -> bool:
    """Whether nothing is left to export. Raises `StaleError` for what is there and was made by something else."""
    predictions.check()
    if not (predictions.folder / "row.json").is_file() or not predictions.facts().get("complete"):
        return False
    return all(predictions.has(index) for index in range(len(data)))


def export(
    model: nn.Module,
    predictions: Predictions,
    data: DataSet,
    on_scene: Callable[[int, int], None] | None = None,
    outputs: Sequence[str] = OUTPUTS,
) -> None:
    """Run `model` on every scene whose predictions are not there yet, and keep `outputs`, those that it has."""
    predictions.begin()
    for index, scene in enumerate(data):
        if not predictions.has(index):
            predictions.write(index, predict(model, scene, outputs))
        if on_scene is not None:
            on_scene(index + 1, len(data))


@torch.inference_mode()
def predict(model: nn.Module, scene: TrueScene, outputs: Sequence[str] = OUTPUTS) -> dict[str, Tensor]:
    """What `model` makes of a scene, without a batch axis, in fp32 on the CPU: those of `outputs` that it has."""
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False  # convolutions would run in TF32 and still be called fp32
    try:
        output: Any = model(scene.images.to(next(model.parameters()).device))
        return {name: output[name][0].float().cpu() for name in outputs if name in output}
    finally:
        torch.backends.cudnn.allow_tf32 = tf32


def describe(model: nn.Module, reference: nn.Module | None, data: DataSet) -> dict[str, Any]:
    """Facts of a finished row, JSON-ready: its INT8 layers, each one's SQNR where there is a float reference, and what
    calibration has found, as `config.json` has it."""
    layers = int8_layer_names(model)
    quantization: Any = getattr(getattr(model, "config", None), "quantization_config", None)
    calibration = getattr(quantization, "calibration", None)
    facts: dict[str, Any] = {"complete": True, "int8_layers": layers, "sqnr_db": None, "calibration": calibration}
    if layers and reference is not None and not int8_layer_names(reference):
        device = next(reference.parameters()).device
        scenes = first_scenes(data, SQNR_SCENES)
        tracked = None
        if any(name.startswith("track_head.") for name in layers):  # which runs for points alone
            height, width = (min(scene.images.shape[axis] for scene in scenes) for axis in (-2, -1))
            tracked = torch.rand(TRACKED, 2, generator=torch.Generator().manual_seed(0))
            tracked = (tracked * torch.tensor([width - 1, height - 1])).to(device)
        sqnr = layer_sqnr(reference, model, (scene.images.to(device) for scene in scenes), tracked)
        # JSON has no infinity, which is what an exact layer has; `float` reads the word.
        facts["sqnr_db"] = {name: db if math.isfinite(db) else str(db) for name, db in sqnr.items()}
    return facts
