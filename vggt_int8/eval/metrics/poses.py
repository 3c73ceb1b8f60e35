"""Camera poses against the truth: relative poses of all pairs of views, and the trajectory of the camera's centres."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vggt_int8.geometry import camera_center, direction_error_degrees, relative_pose, rotation_error_degrees
from vggt_int8.similarity import umeyama


@dataclass(frozen=True)
class PoseScores:
    """Of `pairs` pairs of views, all of which count alike. Protocol of VGGT's evaluation (Wang et al., 2025).

    auc_K: per cent. A pair's error is the larger of the angle between true and predicted relative rotation and the
        angle between true and predicted direction of translation; AUC@K is the mean, over the whole thresholds
        1 ... K degrees, of the percentage of pairs below the threshold (Jin et al., "Image Matching across Wide
        Baselines", 2021, there called mAA).
    rra_K, rta_K: relative rotation and translation accuracy, the percentage of pairs whose rotation (direction of
        translation) is less than K degrees off (as in "PoseDiffusion", Wang et al., 2023).
    rotation_median, translation_median: degrees.

    A translation that points the wrong way is wrong here: the sign is not forgiven.
    """

    auc_30: float
    auc_15: float
    auc_5: float
    auc_3: float
    rra_30: float
    rra_15: float
    rra_5: float
    rta_30: float
    rta_15: float
    rta_5: float
    rotation_median: float
    translation_median: float
    pairs: int


def pose_errors(predicted: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Two extrinsics [B, S, 3, 4], camera from world -> rotation and translation errors [B, pairs] in degrees.

    Pairs are (0, 1), (0, 2), ... (S - 2, S - 1). Views at one place have no direction: the translation of such a pair
    has no error, and a prediction at one place of views that are apart has 90 degrees.

    Raises ValueError for a single view, and where the shapes differ.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"cameras {list(predicted.shape)} and truth {list(truth.shape)} differ")
    views = truth.shape[1]
    if views < 2:
        raise ValueError(f"relative poses need at least two views, got {views}")
    first, second = torch.triu_indices(views, views, offset=1, device=truth.device)
    between = [relative_pose(e[:, first], e[:, second]) for e in (predicted.float(), truth.float())]
    rotation = rotation_error_degrees(between[0][..., :3], between[1][..., :3])
    found, wanted = (pose[..., 3] for pose in between)
    lost = ~found.any(dim=-1) & wanted.any(dim=-1)
    return rotation, direction_error_degrees(found, wanted).masked_fill(lost, 90.0)


def pose_scores(rotation: Tensor, translation: Tensor) -> PoseScores:
    """Errors of any number of pairs, in degrees, of the same shape -> scores."""
    rotation, translation = rotation.flatten(), translation.flatten()
    worst = torch.maximum(rotation, translation)
    return PoseScores(
        **{f"auc_{limit}": _auc(worst, limit) for limit in (30, 15, 5, 3)},
        **{f"rra_{limit}": _below(rotation, limit) for limit in (30, 15, 5)},
        **{f"rta_{limit}": _below(translation, limit) for limit in (30, 15, 5)},
        rotation_median=rotation.median().item(),
        translation_median=translation.median().item(),
        pairs=worst.numel(),
    )


def trajectory_error(predicted: Tensor, truth: Tensor) -> float:
    """Absolute trajectory error (ATE) of one scene: two extrinsics [S, 3, 4], camera from world -> length.

    In the unit of `truth`: the root of the mean squared distance between true and predicted camera centres, after the
    similarity (rotation, translation, scale) that makes it least (Sturm et al., "A Benchmark for the Evaluation of
    RGB-D SLAM Systems", 2012, with the scale of Umeyama's, since a reconstruction from images has none).

    Raises ValueError where the shapes differ, and below three views: two centres always fit.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"cameras {list(predicted.shape)} and truth {list(truth.shape)} differ")
    if len(truth) < 3:
        raise ValueError(f"a trajectory error needs at least three views, got {len(truth)}: two always fit")
    centers, wanted = camera_center(predicted.double()), camera_center(truth.double())
    aligned = umeyama(centers, wanted).apply(centers)
    return (aligned - wanted).square().sum(-1).mean().sqrt().item()


def _auc(errors: Tensor, limit: int) -> float:
    thresholds = torch.arange(1, limit + 1, device=errors.device)
    return 100 * (errors[:, None] < thresholds).float().mean().item()


def _below(errors: Tensor, limit: int) -> float:
    return 100 * (errors < limit).float().mean().item()
