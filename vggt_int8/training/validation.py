"""Scores a model on held-out scenes that never change: pose AUC and depth errors, in fp32."""

from dataclasses import asdict

import torch

from vggt_int8.model import VGGT
from vggt_int8.scenes import depth_scores, pose_errors, pose_scores, render_scenes, scene_seeds
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
    rotation, translation, depth, truth, valid = [], [], [], [], []
    per_batch = max(1, frames // views)
    for first in range(0, scenes, per_batch):
        seeds = scene_seeds("held_out", range(first, min(first + per_batch, scenes)))
        batch = render_scenes(seeds, views, data.size, device=device, supersample=data.supersample)
        # Eager: compiling for these shapes and for fp32 would take longer than it saves.
        with torch.autocast(device.type, enabled=False), torch.compiler.set_stance("force_eager"):
            output = model(batch.images, frames_chunk_size=None)
        if output.extrinsic is not None:
            r, t = pose_errors(output.extrinsic, batch.extrinsic)
            rotation.append(r)
            translation.append(t)
        if output.depth is not None:
            depth.append(output.depth[..., 0])
            truth.append(batch.depth)
            valid.append(batch.valid)
    scores: dict[str, float] = {}
    if rotation:
        scores |= asdict(pose_scores(torch.cat(rotation), torch.cat(translation)))
    if depth:
        scores |= asdict(depth_scores(torch.cat(depth), torch.cat(truth), torch.cat(valid)))
    return scores
