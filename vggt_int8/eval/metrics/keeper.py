"""`ScoreKeeper`: scores over any number of batches, of which only the errors are kept."""

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from vggt_int8.eval.metrics.depth import DepthErrors, DepthScores, depth_errors
from vggt_int8.eval.metrics.focal import focal_ratios, focal_scores
from vggt_int8.eval.metrics.poses import pose_errors, pose_scores
from vggt_int8.scenes.render import SceneBatch


class ScoreKeeper:
    """Scores of one model over any number of batches, of which only the errors are kept."""

    def __init__(self) -> None:
        self._poses: list[tuple[Tensor, Tensor]] = []
        self._depths: list[DepthErrors] = []
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
            errors = DepthErrors(*(torch.cat(parts) for parts in zip(*self._depths, strict=True)))
            result |= asdict(DepthScores(errors.abs_rel.mean().item(), errors.delta_125.mean().item()))
        if self._focals:
            result |= asdict(focal_scores(torch.cat(self._focals)))
        return result

    def scene_scores(self) -> dict[str, list[float]]:
        """AUCs and AbsRel of each scene by itself, in the order in which they came: for intervals over scenes."""
        result: dict[str, list[float]] = {}
        for rotation, translation in self._poses:
            for pairs in zip(rotation, translation, strict=True):
                scores = asdict(pose_scores(*pairs))
                for name in ("auc_30", "auc_15", "auc_5", "auc_3"):
                    result.setdefault(name, []).append(scores[name])
        if self._depths:
            result["abs_rel"] = torch.cat([errors.abs_rel for errors in self._depths]).tolist()
        return result
