"""Scores of a reconstruction against exact ground truth: pose AUC and depth errors, as in VGGT's evaluation.

Poses: every pair of views of a scene gives one error, the larger of the angle between true and predicted relative
rotation and the angle between true and predicted direction of translation. AUC@k is the mean, over the whole
thresholds 1 ... k degrees, of the share of pairs below the threshold. Pairs of all scenes count alike. A translation
that points the wrong way is wrong here: the sign is not forgiven.

Depth: one scale per scene, the median of truth / prediction over its valid pixels, then AbsRel and the share
of pixels within a factor of 1.25. Every scene counts alike.

Pixels: fx / fy over its true value, 1 where the shape of a pixel is known. Every view counts alike.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from vggt_int8.geometry import direction_error_degrees, relative_pose, rotation_error_degrees
from vggt_int8.scenes.render import SceneBatch


@dataclass(frozen=True)
class PoseScores:
    """AUCs in percent, median errors in degrees, over `pairs` pairs of views."""

    auc_30: float
    auc_15: float
    auc_5: float
    auc_3: float
    rotation_median: float
    translation_median: float
    pairs: int


@dataclass(frozen=True)
class DepthScores:
    """abs_rel: mean |prediction - truth| / truth; delta_125: percentage of pixels within a factor of 1.25."""

    abs_rel: float
    delta_125: float


@dataclass(frozen=True)
class FocalScores:
    """focal_ratio: median over views of predicted fx / fy over the true one; focal_ratio_105: percentage of views
    where that is within a factor of 1.05."""

    focal_ratio: float
    focal_ratio_105: float


def pose_errors(predicted: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Two extrinsics [B, S, 3, 4], camera from world -> rotation and translation errors [B, pairs] in degrees."""
    views = truth.shape[1]
    if views < 2:
        raise ValueError(f"relative poses need at least two views, got {views}")
    first, second = torch.triu_indices(views, views, offset=1, device=truth.device)
    between = [relative_pose(e[:, first], e[:, second]) for e in (predicted.float(), truth.float())]
    rotation = rotation_error_degrees(between[0][..., :3], between[1][..., :3])
    translation = direction_error_degrees(between[0][..., 3], between[1][..., 3])
    return rotation, translation


def pose_scores(rotation: Tensor, translation: Tensor) -> PoseScores:
    """Errors of any number of pairs, in degrees, of the same shape -> scores."""
    rotation, translation = rotation.flatten(), translation.flatten()
    worst = torch.maximum(rotation, translation)
    return PoseScores(
        auc_30=_auc(worst, 30),
        auc_15=_auc(worst, 15),
        auc_5=_auc(worst, 5),
        auc_3=_auc(worst, 3),
        rotation_median=rotation.median().item(),
        translation_median=translation.median().item(),
        pairs=worst.numel(),
    )


def depth_scores(predicted: Tensor, truth: Tensor, valid: Tensor) -> DepthScores:
    """Depths [B, S, H, W] and validity (bool) of the same shape -> scores."""
    abs_rel, inlier = depth_errors(predicted, truth, valid)
    return DepthScores(abs_rel.mean().item(), 100 * inlier.mean().item())


def depth_errors(predicted: Tensor, truth: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """As `depth_scores`, for each scene: AbsRel [B], and the share of pixels within a factor of 1.25 [B], 0 ... 1."""
    if predicted.shape != truth.shape or valid.shape != truth.shape:
        raise ValueError(
            f"depth {tuple(predicted.shape)}, truth {tuple(truth.shape)} and valid {tuple(valid.shape)} differ"
        )
    abs_rel, delta = [], []
    for scene_predicted, scene_truth, scene_valid in zip(predicted.float(), truth.float(), valid, strict=True):
        p, t = scene_predicted[scene_valid], scene_truth[scene_valid]
        p = p * (t / p).median()
        abs_rel.append(((p - t).abs() / t).mean())
        delta.append((torch.maximum(p / t, t / p) < 1.25).float().mean())
    return torch.stack(abs_rel), torch.stack(delta)


def focal_ratios(predicted: Tensor, truth: Tensor) -> Tensor:
    """Two intrinsics [..., 3, 3] -> predicted fx / fy over the true one [...]."""
    ratio = [k[..., 0, 0].float() / k[..., 1, 1].float() for k in (predicted, truth)]
    return ratio[0] / ratio[1]


def focal_scores(ratios: Tensor) -> FocalScores:
    """What `focal_ratios` gave, of any shape -> scores."""
    within = torch.maximum(ratios, 1 / ratios) < 1.05
    return FocalScores(ratios.median().item(), 100 * within.float().mean().item())


class ScoreKeeper:
    """Scores of one model over any number of batches, of which only the errors are kept."""

    def __init__(self) -> None:
        self._poses: list[tuple[Tensor, Tensor]] = []
        self._depths: list[tuple[Tensor, Tensor]] = []
        self._focals: list[Tensor] = []

    def add(
        self,
        extrinsic: Tensor | None,
        depth: Tensor | None,
        true_extrinsic: Tensor,
        true_depth: Tensor,
        valid: Tensor,
        intrinsic: Tensor | None = None,
        true_intrinsic: Tensor | None = None,
    ) -> None:
        """Predicted extrinsic [B, S, 3, 4] and depth [B, S, H, W] or [B, S, H, W, 1], None where a head is off; the
        truth in the same shapes, and where its depth is known [B, S, H, W] bool. Intrinsics [B, S, 3, 3]: both, or
        None where pixels are not to be scored."""
        if extrinsic is not None:
            self._poses.append(pose_errors(extrinsic, true_extrinsic))
        if depth is not None:
            depth = depth.squeeze(-1) if depth.dim() == 5 else depth
            self._depths.append(depth_errors(depth, true_depth, valid))
        if intrinsic is not None and true_intrinsic is not None:
            self._focals.append(focal_ratios(intrinsic, true_intrinsic).flatten())

    def add_output(self, output: Any, truth: SceneBatch) -> None:
        """A network's cameras and depth for the images of rendered scenes, beside the truth."""
        self.add(
            output.extrinsic,
            output.depth,
            truth.extrinsic,
            truth.depth,
            truth.valid,
            output.intrinsic,
            truth.intrinsic,
        )

    def scores(self) -> dict[str, float]:
        """Of all scenes so far: the fields of `PoseScores`, `DepthScores`, `FocalScores`, those that were predicted."""
        result: dict[str, float] = {}
        if self._poses:
            rotation, translation = (torch.cat(parts) for parts in zip(*self._poses, strict=True))
            result |= asdict(pose_scores(rotation, translation))
        if self._depths:
            abs_rel, inlier = (torch.cat(parts) for parts in zip(*self._depths, strict=True))
            result |= asdict(DepthScores(abs_rel.mean().item(), 100 * inlier.mean().item()))
        if self._focals:
            result |= asdict(focal_scores(torch.cat(self._focals)))
        return result


def _auc(errors: Tensor, limit: int) -> float:
    thresholds = torch.arange(1, limit + 1, device=errors.device)
    return 100 * (errors[:, None] < thresholds).float().mean().item()
