"""Distillation: the distance of a network in training from its floating-point teacher, on any images.

Every term is relative to the teacher's output, so that none depends on a scene's scale and all have the same meaning
for every model: 0.01 is an error of one percent. Pixels of which the teacher itself is uncertain have less weight.
Source of the idea: Hinton et al., "Distilling the Knowledge in a Neural Network" (2015).
"""

from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor

from vggt_int8.model import VGGTOutput
from vggt_int8.model.families import AnyNetwork
from vggt_int8.model.omega.network import VGGTOmegaOutput
from vggt_int8.training.losses import FOV_WEIGHT

SMALLEST = 1e-6  # of what errors are divided by


class Prediction(NamedTuple):
    """A network's output for images, and the tokens of the aggregator's layers that its heads read."""

    output: VGGTOutput | VGGTOmegaOutput
    tokens: tuple[Tensor, ...]  # each [B, S, P, 2C]


@dataclass(frozen=True)
class DistillConfig:
    """Weights of the terms (see `distill_losses`); gamma: decay of a camera iteration's weight, from last to first."""

    pose: float = 1.0
    depth: float = 1.0
    points: float = 1.0
    confidence: float = 0.1
    features: float = 1.0
    gamma: float = 0.6


def predict(model: torch.nn.Module, network: AnyNetwork, images: Tensor) -> Prediction:
    """Run `model`, which is `network` or wraps it, on images [B, S, 3, H, W]; `network` must be in training mode, in
    which it gives the poses of all refinements."""
    kept: list[tuple[Tensor, ...]] = []

    def keep(module: torch.nn.Module, args: tuple[object, ...], tokens: dict[int, Tensor]) -> None:
        kept.append(tuple(tokens.values()))

    handle = network.aggregator.register_forward_hook(keep)
    try:
        output = model(images, frames_chunk_size=None)
    finally:
        handle.remove()
    return Prediction(output, kept[0])


def distill_losses(student: Prediction, teacher: Prediction, config: DistillConfig) -> dict[str, Tensor]:
    """Every term that both have, unweighted, and "total", their weighted sum. All are fp32 scalars.

    pose: L1 of translation (relative to its mean size), quaternion and field of view, of each refinement against the
        same one of the teacher.
    depth, points: mean distance over mean size, weighted by the teacher's confidence.
    confidence: mean difference of the logarithms of both heads' confidences.
    features: squared error over squared size, mean over layers.
    """
    ours, theirs = student.output, teacher.output
    layers = [_power(a, b) for a, b in zip(student.tokens, teacher.tokens, strict=True)]
    losses = {"features": torch.stack(layers).mean()}
    if ours.pose_enc_list is not None and theirs.pose_enc_list is not None:
        losses["pose"] = pose_loss(ours.pose_enc_list, theirs.pose_enc_list, config.gamma)
    confidences = []
    for name, key in (("depth", "depth"), ("points", "world_points")):
        value, wanted = getattr(ours, key), getattr(theirs, key)
        if value is None or wanted is None:
            continue
        its_own = f"{key}_conf" in theirs  # VGGT-Omega's points follow from depth and cameras, as trusted as depth
        certain = theirs[f"{key}_conf" if its_own else "depth_conf"].float()
        losses[name] = map_loss(value, wanted, certain)
        if its_own:
            confidences.append((ours[f"{key}_conf"].float().log() - certain.log()).abs().mean())
    if confidences:
        losses["confidence"] = torch.stack(confidences).mean()
    losses["total"] = torch.stack([getattr(config, name) * value for name, value in losses.items()]).sum()
    return losses


def pose_loss(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], gamma: float) -> Tensor:
    """Pose encodings [B, S, 9] of each refinement; the last one weighs 1."""
    weights = [gamma ** (len(ours) - 1 - i) for i in range(len(ours))]
    total = torch.zeros((), device=ours[-1].device)
    for weight, pose, wanted in zip(weights, ours, theirs, strict=True):
        translation, quaternion, fov = (pose.float() - wanted.float()).abs().split([3, 4, 2], dim=-1)
        size = wanted[..., :3].float().abs().mean().clamp_min(SMALLEST)
        total = total + weight * (translation.mean() / size + quaternion.mean() + FOV_WEIGHT * fov.mean())
    return total / sum(weights)


def map_loss(ours: Tensor, theirs: Tensor, certain: Tensor) -> Tensor:
    """Depth or points [B, S, H, W, C] and how certain the teacher is of a pixel, [B, S, H, W], above 1.

    A scene is measured by its own mean size, so that all scenes count alike.
    """
    error = (ours.float() - theirs.float()).norm(dim=-1)
    scene = (1, 2, 3)
    size = (theirs.float().norm(dim=-1) * certain).sum(scene).clamp_min(SMALLEST)
    return cast(Tensor, ((error * certain).sum(scene) / size).mean())


def _power(ours: Tensor, theirs: Tensor) -> Tensor:
    theirs = theirs.float()
    return (ours.float() - theirs).square().sum() / theirs.square().sum().clamp_min(SMALLEST)
