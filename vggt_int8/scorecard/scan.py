"""Reconstructed points against laser scans, with tolerances in meters.

As in ETH3D's multi-view benchmark (Schöps et al., 2017): accuracy is the share of reconstructed points that are nearer
to the scan than a tolerance, completeness the share of the scan that is nearer to the reconstruction, F-score their
harmonic mean; clouds are thinned to cubes of 1 cm. Unlike there, only points of pixels count at which a depth is known,
and only the part of the scan that the views see; so nothing has to be known about free space, and few views can be
scored. The scores are not those of ETH3D's server.
"""

import torch
from torch import Tensor

from vggt_int8.data.scans import thin
from vggt_int8.eval.metrics.points import nearest

TOLERANCES = (1, 2, 5, 10, 20, 50)  # cm
VOXEL = 0.01  # metres
MOST_POINTS = 1_000_000  # of a cloud, after thinning; a random part of larger ones


def scan_scores(points: Tensor, scan: Tensor, seed: int = 0) -> dict[str, float]:
    """Points [N, 3] in the scan's frame and the scan [M, 3], both in metres -> metric -> per cent."""
    clouds = [_thinned(cloud, seed) for cloud in (points, scan)]
    to_scan, to_points = nearest(clouds[0], clouds[1])[0], nearest(clouds[1], clouds[0])[0]
    scores = {}
    for tolerance in TOLERANCES:
        precision, recall = (100 * (d <= tolerance / 100).double().mean().item() for d in (to_scan, to_points))
        scores[f"scan_accuracy_{tolerance}"] = precision
        scores[f"scan_completeness_{tolerance}"] = recall
        total = precision + recall
        scores[f"scan_f_{tolerance}"] = 2 * precision * recall / total if total else 0.0
    return scores


def _thinned(cloud: Tensor, seed: int) -> Tensor:
    found = torch.from_numpy(thin(cloud.double().numpy(), VOXEL))
    if len(found) <= MOST_POINTS:
        return found
    return found[torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))[:MOST_POINTS]]
