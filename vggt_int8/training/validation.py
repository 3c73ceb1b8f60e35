"""Scores a model on held-out scenes that never change: pose AUC and depth errors, in fp32."""

import torch

from vggt_int8.model import VGGT
from vggt_int8.scenes import ScoreKeeper, scene_batches
from vggt_int8.training.config import DataConfig, ValidationConfig


@torch.no_grad()
def validate(
    model: VGGT,
    data: DataConfig,
    config: ValidationConfig,
    *,
    scenes: int | None = None,
) -> dict[str, dict[str, float]]:
    """{"4 views": {"auc_30": ..., "abs_rel": ..., ...}, ...} on the first `scenes` held-out scenes (None: all).

    The network runs in fp32 whatever autocast surrounds the call, and is left in the mode it came in.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    results = {}
    try:
        for views in config.views:
            results[f"{views} views"] = _score(
                model, data, views, scenes or config.scenes, config.frames_per_batch, device
            )
    finally:
        model.train(was_training)
    return results


def _score(
    model: VGGT, data: DataConfig, views: int, scenes: int, frames: int, device: torch.device
) -> dict[str, float]:
    kept = ScoreKeeper()
    batches = scene_batches(
        "held_out",
        scenes,
        views,
        data.size,
        frames_per_batch=frames,
        device=device,
        supersample=data.supersample,
    )
    for batch in batches:
        # Eager: compiling for these shapes and for fp32 would take longer than it saves.
        with torch.autocast(device.type, enabled=False), torch.compiler.set_stance("force_eager"):
            output = model(batch.images, frames_chunk_size=None)
        kept.add(output.extrinsic, output.depth, batch.extrinsic, batch.depth, batch.valid)
    return kept.scores()
