"""Point clouds against the truth: how far points are from the nearest ones of the other cloud, and how they face.

Accuracy, completeness and F-score as for multi-view stereo (Knapitsch et al., "Tanks and Temples", 2017; accuracy and
completeness there are percentages, here also mean distances, as in DUSt3R's evaluation, Wang et al., 2024, and later).
The clouds must be in one frame: `umeyama` over pixels that both know aligns them, `refine_alignment` then does without
the pairing. Nearest neighbours are exact: by scipy's k-d tree where scipy is installed (the extra "eval"), else by all
distances, a block at a time, which takes a second for 15,000 points and grows with the square. Thinned clouds raise all
distances, so both are to be thinned alike.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vggt_int8.similarity import Similarity, umeyama

_PAIRS = 1 << 23  # distances that are looked at at a time: 64 MB


@dataclass(frozen=True)
class PointScores:
    """Lengths in the truth's unit; means over points."""

    accuracy: float  # from a predicted point to the nearest true one
    accuracy_median: float
    completeness: float  # from a true point to the nearest predicted one
    completeness_median: float
    normal_consistency: float | None  # 0 ... 1: |cosine| between nearest points' normals, mean of both ways
    precision: float  # per cent of predicted points nearer than the threshold
    recall: float  # per cent of true points nearer than the threshold
    f_score: float  # their harmonic mean; 0 where both are
    threshold: float


def point_scores(
    predicted: Tensor,
    truth: Tensor,
    threshold: float,
    predicted_normals: Tensor | None = None,
    true_normals: Tensor | None = None,
) -> PointScores:
    """Clouds [N, 3] and [M, 3] in one frame, normals of the same shapes (unit vectors) or None -> scores.

    A normal that is not finite is left out of the consistency, which is None if none is left. Raises ValueError for an
    empty cloud, points that are not finite and a threshold that is not positive.
    """
    for name, cloud in (("predicted", predicted), ("true", truth)):
        if cloud.dim() != 2 or cloud.shape[-1] != 3 or not len(cloud) or not cloud.isfinite().all():
            raise ValueError(f"the {name} points {list(cloud.shape)} must be finite and [N, 3], N at least 1")
    if not threshold > 0:
        raise ValueError(f"threshold is {threshold}; it must be a length above 0")
    to_truth, nearest_true = nearest(predicted, truth)
    to_predicted, nearest_predicted = nearest(truth, predicted)
    consistency = None
    if predicted_normals is not None and true_normals is not None:
        forth = _facing(predicted_normals, true_normals[nearest_true])
        back = _facing(true_normals, predicted_normals[nearest_predicted])
        cosines = torch.stack([forth.mean(), back.mean()])
        consistency = cosines.mean().item() if len(forth) and len(back) else None
    precision, recall = (100 * (d < threshold).float().mean().item() for d in (to_truth, to_predicted))
    return PointScores(
        accuracy=to_truth.mean().item(),
        accuracy_median=to_truth.median().item(),
        completeness=to_predicted.mean().item(),
        completeness_median=to_predicted.median().item(),
        normal_consistency=consistency,
        precision=precision,
        recall=recall,
        f_score=2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        threshold=threshold,
    )


@cache
def _kd_tree() -> Any:
    """scipy's class, None without scipy: it is an extra, slow to import, and all distances give the same, later."""
    try:
        from scipy.spatial import cKDTree
    except ImportError:
        return None
    return cKDTree


def search_method() -> str:
    """How `nearest` searches here, for a report."""
    return "all distances" if _kd_tree() is None else "scipy's k-d tree"


def nearest(queries: Tensor, cloud: Tensor) -> tuple[Tensor, Tensor]:
    """Points [N, 3] and [M, 3] -> distance [N] fp64 to the nearest of `cloud`, and its index [N]. Both on the CPU."""
    queries, cloud = queries.double(), cloud.double()
    if (tree := _kd_tree()) is not None:
        distance, index = tree(cloud.numpy()).query(queries.numpy())
        return torch.from_numpy(distance), torch.from_numpy(index)
    found = [
        # By differences: the expanded square, which is faster, cancels where points are near.
        torch.cdist(part, cloud, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)
        for part in queries.split(max(1, _PAIRS // len(cloud)))
    ]
    return torch.cat([part.values for part in found]), torch.cat([part.indices for part in found])


def refine_alignment(
    predicted: Tensor, truth: Tensor, start: Similarity, *, steps: int = 20, distance: float | None = None
) -> Similarity:
    """Iterative closest points (Besl and McKay, 1992), with scale: a similarity from `predicted` [N, 3] to `truth`.

    Each step pairs every aligned point with the nearest true one and aligns anew; it ends after `steps`, or when the
    mean distance no longer falls by a thousandth. distance: pairs farther apart are left out, as long as three are
    left. The similarity of the least mean distance is returned, which may be `start`.
    """
    best, least, current = start, float("inf"), start
    for _ in range(steps + 1):
        apart, index = nearest(current.apply(predicted), truth)
        near = torch.ones_like(apart, dtype=torch.bool) if distance is None else apart <= distance
        mean = apart.mean().item()
        if mean < least:
            best = current
        if not mean < 0.999 * least or near.sum() < 3:
            break
        least = mean
        current = umeyama(predicted[near], truth[index[near]])
    return best


def normals_of_grid(points: Tensor) -> Tensor:
    """Points of pixels [..., H, W, 3] -> unit normals of the surface through each pixel's neighbours, same shape.

    The cross product of the central differences along row and column; at the border, and where a neighbour is not
    finite or the neighbours lie in a line, NaN. Which of the two sides it shows follows from the pixels' order.
    """
    across, down = torch.full_like(points, torch.nan), torch.full_like(points, torch.nan)
    across[..., :, 1:-1, :] = points[..., :, 2:, :] - points[..., :, :-2, :]
    down[..., 1:-1, :, :] = points[..., 2:, :, :] - points[..., :-2, :, :]
    normal = torch.linalg.cross(across, down)
    return torch.where(normal.norm(dim=-1, keepdim=True) > 0, F.normalize(normal, dim=-1, eps=0.0), torch.nan)


def _facing(normals: Tensor, others: Tensor) -> Tensor:
    """|cosine| of the pairs that both know."""
    cosine = (normals * others).sum(-1).abs()
    return cosine[cosine.isfinite()]
