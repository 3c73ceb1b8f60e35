"""Scores several models on the same rendered scenes: pose AUC and depth errors against the truth, and how far each
model's outputs are from those of the first. Every scene is rendered once, and nothing but errors is kept.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vggt_int8.scenes import ScoreKeeper, scene_batches

COMPARED = ("pose_enc", "depth", "world_points")


@torch.inference_mode()
def score_models(
    models: Mapping[str, nn.Module],
    *,
    scenes: int,
    views: int,
    size: tuple[int, int],
    pixel_aspect: tuple[float, float] = (1.0, 1.0),
    split: str = "held_out",
    frames_per_batch: int = 64,
    device: torch.device | str = "cpu",
    on_batch: Callable[[int, int], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Scores of each model on scenes 0 ... scenes - 1 of `split`, `views` views each, of size (H, W).

    models: name -> a VGGT on `device`, in evaluation mode, of any precision. on_batch: called with (scenes done, all
    scenes). pixel_aspect: see `describe_scenes`. Returns name -> the fields of `PoseScores`, `DepthScores` and
    `FocalScores`, and "relative": for each output that the model has, error norm / norm of the first model's output,
    over all scenes.
    """
    keepers = {name: ScoreKeeper() for name in models}
    squares: dict[str, dict[str, tuple[float, float]]] = {name: {} for name in models}
    done = 0
    batches = scene_batches(
        split, scenes, views, size, frames_per_batch=frames_per_batch, device=device, pixel_aspect=pixel_aspect
    )
    for batch in batches:
        reference: Any = None
        for name, model in models.items():
            output = model(batch.images)
            reference = output if reference is None else reference
            keepers[name].add_output(output, batch)
            for key in COMPARED:
                if key in output:
                    error, signal = squares[name].get(key, (0.0, 0.0))
                    squares[name][key] = (
                        error + _square(output[key] - reference[key]),
                        signal + _square(reference[key]),
                    )
        done += len(batch.images)
        if on_batch is not None:
            on_batch(done, scenes)
    return {name: {**keeper.scores(), "relative": _relative(squares[name])} for name, keeper in keepers.items()}


def _square(values: Tensor) -> float:
    return values.double().square().sum().item()


def _relative(squares: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    return {key: math.sqrt(error / signal) for key, (error, signal) in squares.items()}
