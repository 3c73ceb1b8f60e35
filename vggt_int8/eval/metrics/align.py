"""The similarity that lays one set of points on another: how a reconstruction without a scale meets the truth."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Similarity:
    """x -> scale · rotation @ x + translation, in fp64."""

    scale: float
    rotation: Tensor  # [3, 3], determinant 1
    translation: Tensor  # [3], in the target's unit

    def apply(self, points: Tensor) -> Tensor:
        """[..., 3] -> [..., 3] fp64."""
        return self.scale * points.double() @ self.rotation.mT + self.translation

    def after(self, first: "Similarity") -> "Similarity":
        """`first`, then this one."""
        scale, rotation = self.scale * first.scale, self.rotation @ first.rotation
        return Similarity(scale, rotation, self.scale * self.rotation @ first.translation + self.translation)


def umeyama(source: Tensor, target: Tensor) -> Similarity:
    """Paired points [N, 3] -> the similarity of least squared distance from `source` to `target`.

    Closed form (Umeyama, "Least-squares estimation of transformation parameters between two point patterns", 1991),
    in fp64; never a reflection. Points of `source` that all lie in one place, but for the rounding of fp32, have no
    scale; it is 1 then. Raises ValueError where the shapes differ, for no points, and for points that are not finite.
    """
    if source.shape != target.shape or source.dim() != 2 or source.shape[-1] != 3 or not len(source):
        raise ValueError(f"points {list(source.shape)} and {list(target.shape)} must both be [N, 3], N at least 1")
    source, target = source.double(), target.double()
    if not (source.isfinite().all() and target.isfinite().all()):
        raise ValueError("points must be finite to be aligned: leave out those that are not, in both sets")
    middle, wanted = source.mean(0), target.mean(0)
    centered = source - middle
    variance = centered.square().sum(-1).mean()
    u, singular, vt = torch.linalg.svd((target - wanted).mT @ centered / len(source))
    signs = torch.ones_like(singular)
    signs[2] = torch.sign(torch.linalg.det(u) * torch.linalg.det(vt))
    rotation = u * signs @ vt
    rounding = torch.finfo(torch.float32).eps * source.abs().max()
    scale = ((singular * signs).sum() / variance).item() if variance > rounding.square() else 1.0
    return Similarity(scale, rotation, wanted - scale * rotation @ middle)
