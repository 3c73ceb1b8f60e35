"""The shape of a pixel, without a unit: fx / fy over its true value, 1 where it is known. Every view counts alike."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FocalScores:
    """focal_ratio: median over views of predicted fx / fy over the true one; focal_ratio_105: percentage of views
    where that is within a factor of 1.05."""

    focal_ratio: float
    focal_ratio_105: float


def focal_ratios(predicted: Tensor, truth: Tensor) -> Tensor:
    """Two intrinsics [..., 3, 3] -> predicted fx / fy over the true one [...]."""
    ratio = [k[..., 0, 0].float() / k[..., 1, 1].float() for k in (predicted, truth)]
    return ratio[0] / ratio[1]


def focal_scores(ratios: Tensor) -> FocalScores:
    """What `focal_ratios` gave, of any shape -> scores."""
    within = torch.maximum(ratios, 1 / ratios) < 1.05
    return FocalScores(ratios.median().item(), 100 * within.float().mean().item())
