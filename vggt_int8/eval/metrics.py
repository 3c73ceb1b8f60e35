"""Scores of a reconstruction: against exact ground truth, and against another model's for the same images.

Against the truth (`ScoreKeeper`; protocol of VGGT's evaluation, Wang et al., 2025):

Poses, in degrees and per cent: every pair of views of a scene gives one error, the larger of the angle between true and
predicted relative rotation and the angle between true and predicted direction of translation. AUC@k is the mean, over
the whole thresholds 1 ... k degrees, of the percentage of pairs below the threshold (Jin et al., "Image Matching across
Wide Baselines", 2021, there called mAA). Pairs of all scenes count alike. A translation that points the wrong way is
wrong here: the sign is not forgiven.

Depth, without a unit: one scale per scene, the median of truth / prediction over its valid pixels, then AbsRel, the
mean of |prediction - truth| / truth, and the percentage of pixels within a factor of 1.25 (Eigen et al., "Depth Map
Prediction from a Single Image", 2014). Every scene counts alike.

Pixels, without a unit: fx / fy over its true value, 1 where the shape of a pixel is known. Every view counts alike.

Against another model (`geometric_differences`), where nothing is aligned first: degrees and per cent, what a person can
judge. How far the numbers themselves are apart says `vggt_int8.difference`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vggt_int8.geometry import (
    direction_error_degrees,
    pose_encoding_to_camera,
    relative_center_distance,
    relative_pose,
    rotation_error_degrees,
)
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
    """Two extrinsics [B, S, 3, 4], camera from world -> rotation and translation errors [B, pairs] in degrees.

    Pairs are (0, 1), (0, 2), ... (S - 2, S - 1). Raises ValueError for a single view, and where the shapes differ.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"cameras {list(predicted.shape)} and truth {list(truth.shape)} differ")
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
    """Depths [B, S, H, W], in any unit each, and validity (bool) of the same shape -> scores; see `depth_errors`."""
    abs_rel, inlier = depth_errors(predicted, truth, valid)
    return DepthScores(abs_rel.mean().item(), 100 * inlier.mean().item())


def depth_errors(predicted: Tensor, truth: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """As `depth_scores`, for each scene: AbsRel [B], and the share of pixels within a factor of 1.25 [B], 0 ... 1.

    NaN for a scene without a valid pixel. Raises ValueError where the shapes differ.
    """
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


def geometric_differences(
    reference: Mapping[str, Tensor], other: Mapping[str, Tensor], image_size: tuple[int, int]
) -> dict[str, dict[str, float]]:
    """Outputs of two models for the same images of size (H, W) -> `{"<what>_<unit>": {"<statistic>": value}}`.

    Where both have `pose_enc` [..., S, 9] (its mean and maximum over frames):
    rotation_degrees: angle between a frame's two rotations.
    center_percent: distance between a frame's two camera centres, in per cent of the largest distance of a reference
        camera from the first one; left out where the reference's cameras do not move.
    field_of_view_degrees: difference of the two fields of view (all heights and widths).
    Where both have `depth` [..., S, H, W, 1] or `world_points` [..., S, H, W, 3] (median and 90th percentile, p90, over
    pixels):
    depth_percent: |other - reference| / |reference|.
    points_percent: distance between a pixel's two points over the reference point's distance from the first camera.

    Nothing is aligned first: two models of one checkpoint share the first camera's frame and the scale. NaN shows.
    """
    found: dict[str, dict[str, float]] = {}
    if _both(reference, other, "pose_enc", width=9):
        found |= _cameras(reference["pose_enc"].double(), other["pose_enc"].double(), image_size)
    for key, name, width in (("depth", "depth_percent", 1), ("world_points", "points_percent", 3)):
        if _both(reference, other, key, width=width):
            found[name] = _percent(reference[key].double(), other[key].double())
    return found


def _both(reference: Mapping[str, Tensor], other: Mapping[str, Tensor], key: str, width: int) -> bool:
    shapes = [output[key].shape for output in (reference, other) if key in output]
    return len(shapes) == 2 and all(len(shape) > 1 and shape[-1] == width for shape in shapes)


def _cameras(reference: Tensor, other: Tensor, image_size: tuple[int, int]) -> dict[str, dict[str, float]]:
    first, second = (pose_encoding_to_camera(pose, image_size)[0] for pose in (reference, other))
    errors = {
        "rotation_degrees": rotation_error_degrees(first[..., :3], second[..., :3]),
        "center_percent": 100 * relative_center_distance(first, second),
        "field_of_view_degrees": torch.rad2deg((other[..., 7:] - reference[..., 7:]).abs()),
    }
    if errors["center_percent"].isinf().all() or first.shape[-3] == 1:
        del errors["center_percent"]
    return {name: {"mean": error.mean().item(), "max": error.max().item()} for name, error in errors.items()}


def _percent(reference: Tensor, other: Tensor) -> dict[str, float]:
    error, size = (other - reference).norm(dim=-1), reference.norm(dim=-1)
    relative = torch.where(error == 0, 0.0, 100 * error / size)  # also where both are zero; NaN is not equal to 0
    # numpy's percentile: torch.quantile refuses more than 2^24 values.
    median, p90 = np.percentile(relative.flatten().numpy(), [50, 90])
    return {"median": float(median), "p90": float(p90)}
