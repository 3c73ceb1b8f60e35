"""Depth against the truth, under three alignments, per scene.

AbsRel is the mean of |prediction - truth| / truth, without a unit; RMSE the root of the mean squared difference, in the
truth's unit; delta_125 the percentage of pixels within a factor of 1.25 of the truth (Eigen et al., "Depth Map
Prediction from a Single Image", 2014). All valid pixels of a scene's views count alike; every scene counts alike.

The prediction is aligned to the truth first, once a scene and not once a view:
- "none": unchanged, for predictions in the truth's own unit;
- "scale": times the median of truth / prediction;
- "scale_shift": a · prediction + b of least squared difference from the truth (of depth itself, not of its inverse).
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

Alignment = Literal["none", "scale", "scale_shift"]
ALIGNMENTS: tuple[Alignment, ...] = get_args(Alignment)


class DepthErrors(NamedTuple):
    """One value a scene, each [B]."""

    abs_rel: Tensor
    rmse: Tensor  # the truth's unit
    delta_125: Tensor  # per cent


@dataclass(frozen=True)
class DepthScores:
    """abs_rel: mean |prediction - truth| / truth; delta_125: percentage of pixels within a factor of 1.25."""

    abs_rel: float
    delta_125: float


def depth_scores(predicted: Tensor, truth: Tensor, valid: Tensor) -> DepthScores:
    """Depths [B, S, H, W], in any unit each, and validity (bool) of the same shape -> scores, aligned by "scale"."""
    errors = depth_errors(predicted, truth, valid)
    return DepthScores(errors.abs_rel.mean().item(), errors.delta_125.mean().item())


def depth_errors(predicted: Tensor, truth: Tensor, valid: Tensor, alignment: Alignment = "scale") -> DepthErrors:
    """Depths [B, S, H, W] and validity (bool) of the same shape -> errors of each scene.

    A pixel whose aligned depth is not positive is outside of every factor. NaN for a scene without a valid pixel.
    Raises ValueError where the shapes differ, and for an alignment that there is not.
    """
    if predicted.shape != truth.shape or valid.shape != truth.shape:
        raise ValueError(
            f"depth {tuple(predicted.shape)}, truth {tuple(truth.shape)} and valid {tuple(valid.shape)} differ"
        )
    scenes = []
    for scene_predicted, scene_truth, scene_valid in zip(predicted.float(), truth.float(), valid, strict=True):
        t = scene_truth[scene_valid]
        p = align_depth(scene_predicted[scene_valid], t, alignment)
        inlier = (p > 0) & (torch.maximum(p / t, t / p) < 1.25)
        scenes.append((((p - t).abs() / t).mean(), (p - t).square().mean().sqrt(), 100 * inlier.float().mean()))
    return DepthErrors(*(torch.stack(values) for values in zip(*scenes, strict=True)))


def align_depth(predicted: Tensor, truth: Tensor, alignment: Alignment) -> Tensor:
    """Depths [N] at the valid pixels of one scene -> the prediction aligned, [N]."""
    if alignment not in ALIGNMENTS:
        raise ValueError(f"alignment is {alignment!r}; choose one of {', '.join(ALIGNMENTS)}")
    if alignment == "none" or not len(truth):
        return predicted
    if alignment == "scale":
        return predicted * (truth / predicted).median()
    p, t = predicted.double(), truth.double()
    spread = (p - p.mean()).square().mean()
    rounding = torch.finfo(torch.float32).eps * p.abs().max()  # of a prediction that is the same everywhere
    a = ((p - p.mean()) * (t - t.mean())).mean() / spread if spread > rounding.square() else torch.zeros_like(spread)
    return (a * (p - p.mean()) + t.mean()).to(predicted.dtype)
