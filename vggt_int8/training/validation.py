"""Scores a model on held-out scenes that never change: pose AUC and depth errors, in fp32."""

import torch

from vggt_int8.eval.metrics import ScoreKeeper
from vggt_int8.model.families import AnyNetwork
from vggt_int8.scenes import scene_batches
from vggt_int8.training.sections import DataConfig, FrameShape, ValidationConfig


@torch.no_grad()
def validate(
    model: AnyNetwork,
    data: DataConfig,
    config: ValidationConfig,
    *,
    scenes: int | None = None,
) -> dict[str, dict[str, float]]:
    """{"4 views": {"auc_30": ..., "abs_rel": ..., ...}, ...} on the first `scenes` held-out scenes (None: all).

    The frames are of `data.size`, and then of every other of `data.shapes`, in rows named "4 views of 88 x 112".
    The network runs in fp32 whatever autocast surrounds the call, and is left in the mode it came in.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    results = {}
    try:
        for shape in (FrameShape(data.size), *(shape for shape in data.shapes if shape.size != data.size)):
            size = "" if shape.size == data.size else f" of {shape.size[0]} x {shape.size[1]}"
            for views in config.views:
                results[f"{views} views{size}"] = _score(
                    model, data, shape, views, scenes or config.scenes, config.frames_per_batch, device
                )
    finally:
        model.train(was_training)
    return results


def _score(
    model: AnyNetwork, data: DataConfig, shape: FrameShape, views: int, scenes: int, frames: int, device: torch.device
) -> dict[str, float]:
    kept = ScoreKeeper()
    batches = scene_batches(
        "held_out",
        scenes,
        views,
        shape.size,
        frames_per_batch=frames,
        device=device,
        supersample=data.supersample,
        pixel_aspect=shape.pixel_aspect,
    )
    for batch in batches:
        # Eager: compiling for these shapes and for fp32 would take longer than it saves.
        with torch.autocast(device.type, enabled=False), torch.compiler.set_stance("force_eager"):
            output = model(batch.images, frames_chunk_size=None)
        kept.add_output(output, batch)
    return kept.scores()
