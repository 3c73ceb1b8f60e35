"""Scores several models on the same rendered scenes: pose AUC and depth errors against the truth, and the difference of
each model's outputs from those of the first. Every scene is rendered once, and only errors are kept.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from vggt_int8.difference import Difference
from vggt_int8.eval.metrics import ScoreKeeper
from vggt_int8.scenes import scene_batches

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

    models: name -> a VGGT on `device`, in evaluation mode, of any precision.
    on_batch: called with (scenes done, all scenes).
    pixel_aspect: see `describe_scenes`.

    Returns name -> the fields of `PoseScores`, `DepthScores` and `FocalScores`; "relative": for each output that the
    model has, error norm / norm of the first model's output, over all scenes; and "scenes": from
    `ScoreKeeper.scene_scores`.
    """
    keepers = {name: ScoreKeeper() for name in models}
    differences: dict[str, dict[str, Difference]] = {name: {} for name in models}
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
                    differences[name].setdefault(key, Difference()).add(output[key], reference[key])
        done += len(batch.images)
        if on_batch is not None:
            on_batch(done, scenes)
    relative = {name: {key: found.relative for key, found in each.items()} for name, each in differences.items()}
    return {
        name: {**keeper.scores(), "relative": relative[name], "scenes": keeper.scene_scores()}
        for name, keeper in keepers.items()
    }
