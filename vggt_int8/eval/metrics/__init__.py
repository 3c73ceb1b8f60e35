"""Scores of a reconstruction: against exact ground truth, and against another model's for the same images.

Against the truth, per scene, from errors of poses, depth and points; `ScoreKeeper` collects poses and depth over many:

| what | unit | aligned by | protocol |
|---|---|---|---|
| `pose_scores` | per cent, degrees | nothing: relative poses | AUC and RRA, RTA over all pairs of views |
| `trajectory_error` | the truth's | similarity (Umeyama) | ATE: RMSE of camera centres |
| `depth_errors` | none; RMSE: the truth's | nothing, scale, or scale and shift | AbsRel, RMSE, share within 1.25 |
| `focal_ratios` | none | nothing | fx / fy over the true one |
| `point_scores` | the truth's; per cent | the caller: `umeyama` | accuracy, completeness, normals, F-score |

Against another model: `geometric_differences` in degrees and per cent, `layer_sqnr` of each quantized layer in
decibels; nothing is aligned. How far the numbers themselves are apart says `vggt_int8.difference`. Each function says
its protocol and where it is from.
"""

from vggt_int8.eval.metrics.agreement import geometric_differences
from vggt_int8.eval.metrics.depth import (
    ALIGNMENTS,
    Alignment,
    DepthErrors,
    DepthScores,
    align_depth,
    depth_errors,
    depth_scores,
)
from vggt_int8.eval.metrics.focal import FocalScores, focal_ratios, focal_scores
from vggt_int8.eval.metrics.keeper import ScoreKeeper
from vggt_int8.eval.metrics.layers import layer_sqnr
from vggt_int8.eval.metrics.points import PointScores, normals_of_grid, point_scores, refine_alignment
from vggt_int8.eval.metrics.poses import PoseScores, pose_errors, pose_scores, trajectory_error
from vggt_int8.similarity import Similarity, umeyama

__all__ = [
    "ALIGNMENTS",
    "Alignment",
    "DepthErrors",
    "DepthScores",
    "FocalScores",
    "PointScores",
    "PoseScores",
    "ScoreKeeper",
    "Similarity",
    "align_depth",
    "depth_errors",
    "depth_scores",
    "focal_ratios",
    "focal_scores",
    "geometric_differences",
    "layer_sqnr",
    "normals_of_grid",
    "point_scores",
    "pose_errors",
    "pose_scores",
    "refine_alignment",
    "trajectory_error",
    "umeyama",
]
