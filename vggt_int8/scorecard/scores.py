"""Measures one scene: a model's cameras, depth and points against the truth and against another model's.

The protocols are those of `vggt_int8.eval.metrics`, per scene; afterwards every scene counts alike. Lengths are in
percent of the scene's scale (`TrueScene.scale`), so that scenes in meters and scenes without a unit fit in one table.

Points are unprojected depth if a model has depth and cameras, else `world_points`. At most `Protocol.points` pixels
that both know are drawn (seeded, the same for all models) and aligned by a similarity over these pairs of pixels,
refined by closest points with `icp`; then the pairing is discarded.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vggt_int8.difference import Difference
from vggt_int8.eval.metrics import (
    ALIGNMENTS,
    depth_errors,
    focal_ratios,
    geometric_differences,
    normals_of_grid,
    point_scores,
    pose_errors,
    pose_scores,
    refine_alignment,
    trajectory_error,
)
from vggt_int8.geometry import pose_encoding_to_camera, unproject_depth
from vggt_int8.scorecard.data import TrueScene
from vggt_int8.scorecard.scan import scan_scores
from vggt_int8.similarity import Similarity, umeyama

Outputs = Mapping[str, Tensor]  # pose_enc [S, 9], depth [S, H, W, 1], world_points [S, H, W, 3], those there are


@dataclass(frozen=True)
class Protocol:
    """threshold: of the F-score, in parts of the scene's scale. points: most points of a cloud; 0 scores no clouds."""

    points: int = 5000
    threshold: float = 0.05
    icp: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Reconstruction:
    """A model's outputs for a scene as geometry; None where a head is off."""

    extrinsic: Tensor | None  # [S, 3, 4]
    intrinsic: Tensor | None  # [S, 3, 3]
    depth: Tensor | None  # [S, H, W]
    points: Tensor | None  # [S, H, W, 3] in the first camera's frame

    @classmethod
    def of(cls, outputs: Outputs, size: tuple[int, int]) -> "Reconstruction":
        extrinsic = intrinsic = None
        if "pose_enc" in outputs:
            extrinsic, intrinsic = pose_encoding_to_camera(outputs["pose_enc"], size)
        depth = outputs["depth"].squeeze(-1) if "depth" in outputs else None
        points = outputs.get("world_points")
        if depth is not None and extrinsic is not None and intrinsic is not None:
            points = unproject_depth(depth, extrinsic, intrinsic)
        return cls(extrinsic, intrinsic, depth, points)


def score_scene(outputs: Outputs, truth: TrueScene, protocol: Protocol) -> dict[str, float]:
    """Metric -> value, for what both the model and the truth have. Names and units: `METRICS` of `tables`."""
    found = Reconstruction.of(outputs, (truth.images.shape[-2], truth.images.shape[-1]))
    pairs = _Pairs.drawn(found, truth, protocol)
    points = {} if pairs is None else {**_points(found, truth, protocol, pairs), **_scan(found, truth, protocol, pairs)}
    return {**_poses(found, truth), **_depth(found, truth), **points}


def differences(outputs: Outputs, reference: Outputs, size: tuple[int, int]) -> dict[str, float]:
    """How far a model's geometry is from the reference's: means over frames, medians over pixels, each once a scene."""
    typical = {"rotation_degrees": "mean", "center_percent": "mean", "field_of_view_degrees": "mean"}
    found = geometric_differences(reference, outputs, size)
    return {f"{name}_from_first": values[typical.get(name, "median")] for name, values in found.items()}


def add_differences(kept: dict[str, Difference], outputs: Outputs, reference: Outputs) -> None:
    """Gather ||got - reference|| / ||reference|| of each output over scenes."""
    for name, output in outputs.items():
        if name in reference:
            kept.setdefault(name, Difference()).add(output, reference[name])


def _poses(found: Reconstruction, truth: TrueScene) -> dict[str, float]:
    scores: dict[str, float] = {}
    if found.extrinsic is None or truth.extrinsic is None:
        return scores
    views, scale = len(truth.extrinsic), truth.scale()
    if views > 1:
        scores |= dataclasses.asdict(pose_scores(*pose_errors(found.extrinsic[None], truth.extrinsic[None])))
        del scores["pairs"]
    if views > 2 and scale is not None:
        scores["ate"] = 100 * trajectory_error(found.extrinsic, truth.extrinsic) / scale
    if found.intrinsic is not None and truth.intrinsic is not None:
        scores["focal_ratio"] = focal_ratios(found.intrinsic, truth.intrinsic).median().item()
    return scores


def _depth(found: Reconstruction, truth: TrueScene) -> dict[str, float]:
    scale = truth.scale()
    if found.depth is None or truth.depth is None or truth.valid is None or scale is None or not truth.valid.any():
        return {}
    scores = {}
    for alignment in ALIGNMENTS:
        errors = depth_errors(found.depth[None], truth.depth[None], truth.valid[None], alignment)
        suffix = "" if alignment == "scale" else f"_{alignment}"
        scores[f"abs_rel{suffix}"] = errors.abs_rel.item()
        scores[f"rmse{suffix}"] = 100 * errors.rmse.item() / scale
        scores[f"delta_125{suffix}"] = errors.delta_125.item()
    return scores


@dataclass(frozen=True)
class _Pairs:
    """Pixels that a model and the truth both know, indices [N] of all of a scene's, and what aligns their points."""

    pixels: Tensor
    predicted: Tensor  # [N, 3]
    wanted: Tensor  # [N, 3]
    alignment: Similarity

    @classmethod
    def drawn(cls, found: Reconstruction, truth: TrueScene, protocol: Protocol) -> "_Pairs | None":
        """None where there are fewer than three, or none are asked for."""
        true, scale = truth.points(), truth.scale()
        if not protocol.points or found.points is None or true is None or truth.valid is None or scale is None:
            return None
        both = truth.valid & found.points.isfinite().all(-1) & true.isfinite().all(-1)
        pixels = both.flatten().nonzero().squeeze(-1)
        if len(pixels) < 3:
            return None
        if len(pixels) > protocol.points:
            order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(protocol.seed))
            pixels = pixels[order[: protocol.points]]
        predicted, wanted = (points.flatten(0, 2)[pixels].double() for points in (found.points, true))
        alignment = umeyama(predicted, wanted)
        if protocol.icp:
            alignment = refine_alignment(predicted, wanted, alignment, distance=scale * protocol.threshold)
        return cls(pixels, predicted, wanted, alignment)


def _points(found: Reconstruction, truth: TrueScene, protocol: Protocol, pairs: _Pairs) -> dict[str, float]:
    true, scale = truth.points(), truth.scale()
    assert found.points is not None
    assert true is not None
    assert truth.valid is not None
    assert scale is not None
    known = torch.where(truth.valid[..., None], true, torch.nan)  # no surface through what is not known
    normals = [normals_of_grid(points.double()).flatten(0, 2)[pairs.pixels] for points in (found.points, known)]
    turned = normals[0] @ pairs.alignment.rotation.mT
    aligned = pairs.alignment.apply(pairs.predicted)
    scores = point_scores(aligned, pairs.wanted, scale * protocol.threshold, turned, normals[1])
    values = {
        "accuracy": 100 * scores.accuracy / scale,
        "completeness": 100 * scores.completeness / scale,
        "f_score": scores.f_score,
    }
    return values if scores.normal_consistency is None else values | {"normal_consistency": scores.normal_consistency}


def _scan(found: Reconstruction, truth: TrueScene, protocol: Protocol, pairs: _Pairs) -> dict[str, float]:
    """All points of pixels whose depth is known, in metres, against the scan."""
    if truth.scan is None or not len(truth.scan) or truth.valid is None or found.points is None:
        return {}
    points = found.points[truth.valid & found.points.isfinite().all(-1)]
    return scan_scores(pairs.alignment.apply(points), truth.scan, protocol.seed)
