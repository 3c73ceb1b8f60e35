"""Similarity transforms (scale, rotation, translation), which align a reconstruction without a scale to the truth, or
to another one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_ROUNDS = 20
_CAUCHY = 2.3849  # at which Cauchy's weights are 95 % as efficient as least squares under normal errors
_MAD = 1.4826  # standard deviation over median absolute deviation, of normal errors


@dataclass(frozen=True)
class Similarity:
    """x -> scale · rotation @ x + translation, in fp64."""

    scale: float
    rotation: Tensor  # [3, 3], determinant 1
    translation: Tensor  # [3], in the target's unit

    @classmethod
    def identity(cls) -> "Similarity":
        return cls(1.0, torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))

    def apply(self, points: Tensor) -> Tensor:
        """[..., 3] -> [..., 3] fp64."""
        return self.scale * points.double() @ self.rotation.mT + self.translation

    def after(self, first: "Similarity") -> "Similarity":
        """The composition: `first`, then this one."""
        scale, rotation = self.scale * first.scale, self.rotation @ first.rotation
        return Similarity(scale, rotation, self.scale * self.rotation @ first.translation + self.translation)

    def inverse(self) -> "Similarity":
        rotation, scale = self.rotation.mT, 1 / self.scale
        return Similarity(scale, rotation, -scale * rotation @ self.translation)

    def apply_to_extrinsic(self, extrinsic: Tensor) -> Tensor:
        """Cameras [..., 3, 4] from the source's world -> from the target's, in fp64. Depths are multiplied by
        `scale`.
        """
        extrinsic = extrinsic.double()
        rotation = extrinsic[..., :3] @ self.rotation.mT
        return torch.cat([rotation, self.scale * extrinsic[..., 3:] - rotation @ self.translation[:, None]], dim=-1)


def umeyama(source: Tensor, target: Tensor, weights: Tensor | None = None) -> Similarity:
    """Paired points [N, 3] -> the similarity with the least (weighted) squared distance from `source` to `target`.

    weights: [N], non-negative, in any unit; by default all equal.

    Closed form (Umeyama, "Least-squares estimation of transformation parameters between two point patterns", 1991), in
    fp64; never a reflection. If all points of `source` coincide, up to the rounding of fp32, the scale is undetermined
    and set to 1. Raises ValueError if the shapes differ, for no points, for points that are not finite, and for weights
    that are negative, not finite, or all 0.
    """
    if source.shape != target.shape or source.dim() != 2 or source.shape[-1] != 3 or not len(source):
        raise ValueError(f"points {list(source.shape)} and {list(target.shape)} must both be [N, 3], N at least 1")
    source, target = source.double(), target.double()
    if not (source.isfinite().all() and target.isfinite().all()):
        raise ValueError("points must be finite to be aligned: leave out those that are not, in both sets")
    share = _shares(weights, source)
    middle, wanted = (share * source).sum(0), (share * target).sum(0)
    centered = source - middle
    variance = (share * centered.square()).sum()
    u, singular, vt = torch.linalg.svd((share * (target - wanted)).mT @ centered)
    signs = torch.ones_like(singular)
    signs[2] = torch.sign(torch.linalg.det(u) * torch.linalg.det(vt))
    rotation = u * signs @ vt
    rounding = torch.finfo(torch.float32).eps * source.abs().max()
    scale = ((singular * signs).sum() / variance).item() if variance > rounding.square() else 1.0
    return Similarity(scale, rotation, wanted - scale * rotation @ middle)


def robust_similarity(source: Tensor, target: Tensor, weights: Tensor, unit: Tensor) -> tuple[Similarity, Tensor]:
    """`umeyama` with outliers down-weighted: the similarity and the residual of each pair, [N].

    weights: [N], prior weight of each pair.
    unit: [N], positive: the length in the target's unit by which a pair's distance is measured, such as the point's
        distance from the camera, with which errors of depth grow. Residuals are returned in that unit.

    First minimizes the sum of distances, which a minority of outliers cannot dominate even if their errors agree; then
    uses Cauchy weights, scaled by the median distance, which are more efficient. Both by reweighting.
    """
    found = umeyama(source, target, weights)
    for kind in ("least sum", "cauchy"):
        for _ in range(_ROUNDS):
            off = (found.apply(source) - target.double()).norm(dim=-1) / unit
            median = max(_weighted_median(off, weights), torch.finfo(torch.float32).eps)
            if kind == "least sum":
                trust = 1 / off.clamp(min=0.01 * median)
            else:
                trust = 1 / (1 + (off / (_CAUCHY * _MAD * median)).square())
            before, found = found, umeyama(source, target, weights * trust / unit.square())
            if _same(before, found):
                break
    return found, (found.apply(source) - target.double()).norm(dim=-1) / unit


def _shares(weights: Tensor | None, points: Tensor) -> Tensor:
    """[N, 1] fp64, with sum 1."""
    if weights is None:
        return points.new_full((len(points), 1), 1 / len(points))
    weights = weights.double()
    if weights.shape != points.shape[:1] or not (weights.isfinite().all() and (weights >= 0).all() and weights.any()):
        raise ValueError(
            f"weights {list(weights.shape)} of {len(points)} points must be one for each, finite, 0 or more, not all 0"
        )
    return (weights / weights.sum())[:, None]


def _weighted_median(values: Tensor, weights: Tensor) -> float:
    order = values.argsort()
    sums = weights[order].double().cumsum(0)
    return values[order][torch.searchsorted(sums, sums[-1] / 2).clamp(max=len(values) - 1)].item()


def _same(a: Similarity, b: Similarity, within: float = 1e-6) -> bool:
    size = max(b.translation.abs().max().item(), 1e-12)
    return (
        abs(a.scale / b.scale - 1) < within
        and (a.rotation - b.rotation).abs().max().item() < within
        and (a.translation - b.translation).abs().max().item() < within * size
    )
