"""The losses of the VGGT paper, on a model's output and a batch of scenes with exact ground truth.

Source: Wang et al., "VGGT: Visual Geometry Grounded Transformer" (2025), section 3.4: camera (robust error of the pose
encoding, every refinement, later ones more), depth and points weighted by predicted confidence with a gradient term,
and tracks. VGGT-Omega, which predicts no points, learns its cameras from the scene's points as well: from how far they
are moved where its cameras take the place of the true ones, as pose estimation of objects does ("ADD"; Xiang et al.,
"PoseCNN", 2018). All in fp32 and in the scene's normalised units; the mean over all valid pixels of all processes'
batches.
"""

from collections.abc import Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from vggt_int8.geometry import camera_to_pose_encoding, unproject_depth
from vggt_int8.model import VGGTOutput
from vggt_int8.model.omega.network import VGGTOmegaOutput
from vggt_int8.scenes import SceneBatch
from vggt_int8.training.config import LossConfig

FOV_WEIGHT = 0.5
TRACK_UNIT = 1 / 16  # a track error of 16 pixels counts as 1
LEAST_CONFIDENCE = 1e-6


def scene_losses(
    output: VGGTOutput | VGGTOmegaOutput,
    batch: SceneBatch,
    config: LossConfig,
    others: Mapping[str, Tensor] = MappingProxyType({}),
) -> dict[str, Tensor]:
    """Every term that the output has, unweighted, and "total", their weighted sum. All scalars.

    others: terms computed elsewhere, by the names of their weights.
    """
    losses: dict[str, Tensor] = {}
    if output.pose_enc_list is not None:
        losses["camera"] = camera_loss(output.pose_enc_list, batch, config.gamma)
    if output.depth is not None and output.depth_conf is not None:
        truth = batch.depth[..., None]
        losses["depth"] = confident_loss(output.depth, output.depth_conf, truth, batch.valid, config.alpha)
    if isinstance(output, VGGTOmegaOutput):
        if output.extrinsic is not None and output.intrinsic is not None:
            losses["point"] = displacement_loss(output.extrinsic, output.intrinsic, batch)
    elif output.world_points is not None and output.world_points_conf is not None:
        confidence = output.world_points_conf
        losses["point"] = confident_loss(output.world_points, confidence, batch.world_points, batch.valid, config.alpha)
    if "track" in output:
        losses["track"] = track_loss(output["track"], output["vis"], batch)
    if not losses:
        raise ValueError("the output has nothing to learn from: is the model in training mode, with a head?")
    losses |= others
    losses["total"] = torch.stack([getattr(config, name) * value for name, value in losses.items()]).sum()
    return losses


def camera_loss(pose_encs: tuple[Tensor, ...], batch: SceneBatch, gamma: float) -> Tensor:
    """L1 on translation, quaternion and field of view of each refinement [B, S, 9]; the last one weighs 1."""
    height, width = batch.depth.shape[-2:]
    truth = camera_to_pose_encoding(batch.extrinsic, batch.intrinsic, (height, width))
    weights = [gamma ** (len(pose_encs) - 1 - i) for i in range(len(pose_encs))]
    total = torch.zeros((), device=truth.device)
    for weight, pose in zip(weights, pose_encs, strict=True):
        translation, quaternion, fov = (pose.float() - truth).abs().split([3, 4, 2], dim=-1)
        total = total + weight * (translation.mean() + quaternion.mean() + FOV_WEIGHT * fov.mean())
    return total / sum(weights)


def displacement_loss(extrinsic: Tensor, intrinsic: Tensor, batch: SceneBatch) -> Tensor:
    """Cameras [B, S, 3, 4] and [B, S, 3, 3] -> mean distance of the points that they make of the true depth from the
    true points.

    The depth is not the predicted one: its error says nothing about the cameras, and theirs nothing about the depth.
    """
    depth = torch.where(batch.valid, batch.depth, 0.0)
    moved = unproject_depth(depth, extrinsic, intrinsic) - batch.world_points
    distance = torch.where(batch.valid[..., None], moved, 0.0).norm(dim=-1)
    return distance.sum() / batch.valid.sum().clamp_min(1)


def confident_loss(value: Tensor, confidence: Tensor, truth: Tensor, valid: Tensor, alpha: float) -> Tensor:
    """value, truth [B, S, H, W, C], confidence (above 1), valid [B, S, H, W] -> scalar.

    confidence * error - alpha * log(confidence), where the error is the distance to the truth plus that of the
    differences to the right and lower neighbours (where both pixels are valid).
    """
    difference = torch.where(valid[..., None], value.float() - truth, 0.0)
    error = difference.norm(dim=-1) if value.shape[-1] > 1 else difference[..., 0].abs()
    right = (difference[..., 1:, :] - difference[..., :-1, :]).abs().mean(-1) * (valid[..., 1:] & valid[..., :-1])
    below = (difference[..., 1:, :, :] - difference[..., :-1, :, :]).abs().mean(-1)
    below = below * (valid[..., 1:, :] & valid[..., :-1, :])
    error = error + F.pad(right, (0, 1)) + F.pad(below, (0, 0, 0, 1))
    weighted = confidence * error - alpha * confidence.clamp_min(LEAST_CONFIDENCE).log()
    return (weighted * valid).sum() / valid.sum().clamp_min(1)


def track_loss(track: Tensor, visibility: Tensor, batch: SceneBatch) -> Tensor:
    """Huber on the pixels [B, S, N, 2] of points that are visible, cross entropy on visibility [B, S, N]."""
    if batch.tracks is None or batch.visibility is None:
        raise ValueError("the batch was rendered without tracks")
    distance = F.huber_loss(track.float() * TRACK_UNIT, batch.tracks * TRACK_UNIT, reduction="none").sum(-1)
    visible = batch.visibility.float()
    placed = (distance * visible).sum() / visible.sum().clamp_min(1)
    probability = visibility.float().clamp(1e-6, 1 - 1e-6)
    entropy = -(visible * probability.log() + (1 - visible) * (1 - probability).log())
    return placed + entropy.mean()
