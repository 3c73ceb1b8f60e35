"""Errors of a changed model's outputs relative to the floating-point model on the same images, in degrees and per cent.

Each kind of error is one number per scene: a median over pairs of views, views or pixels. Nothing is aligned, since
both models share the first camera's frame and the scale. Errors of independent changes are added as squares, which is
an approximation (`together`).
"""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from vggt_int8.eval.metrics import geometric_differences
from vggt_int8.geometry import (
    direction_error_degrees,
    pose_encoding_to_camera,
    relative_pose,
    rotation_error_degrees,
)

Errors = dict[str, float]  # kind -> how far


class Measure(NamedTuple):
    title: str
    unit: str


MEASURES = {
    "rotation": Measure("rotation", "°"),
    "direction": Measure("direction", "°"),
    "focal": Measure("focal length", "%"),
    "depth": Measure("depth", "%"),
    "points": Measure("points", "%"),
    "tracks": Measure("tracks", "%"),
}


def measure(outputs: Mapping[str, Tensor], reference: Mapping[str, Tensor], size: tuple[int, int]) -> Errors:
    """Outputs of two models for one scene of at least two views of `size` (H, W) pixels, each [1, S, ...] as
    `VGGTOutput` has them -> what both have, of

    rotation, direction: median over pairs of views of the angle between the two models' relative rotations, and
        between their directions of translation; degrees.
    focal: mean over views and both axes of |f_reference / f - 1|, per cent, over fields of view above 0; absent where
        the reference has none.
    depth: median over pixels of |difference| / |reference|, per cent.
    points: median over pixels of the distance over the reference point's distance from the first camera, per cent.
    tracks: median over points and views, but the first, in which the points are given, of the distance in pixels over
        the image's width, per cent.
    """
    found: Errors = {}
    if "pose_enc" in outputs and "pose_enc" in reference:
        poses = [output["pose_enc"].double().cpu() for output in (outputs, reference)]
        found |= _between_views(*(pose_encoding_to_camera(pose, size)[0][0] for pose in poses))
        half_width, wanted = (torch.tan(pose[..., 7:] / 2) for pose in poses)
        if (seen := wanted > 0).any():
            found["focal"] = 100 * (half_width[seen] / wanted[seen] - 1).abs().mean().item()
    dense = geometric_differences(_maps(reference), _maps(outputs), size)
    found |= {key: dense[f"{key}_percent"]["median"] for key in ("depth", "points") if f"{key}_percent" in dense}
    if "track" in outputs and "track" in reference:
        moved = (outputs["track"].double() - reference["track"].double())[:, 1:].norm(dim=-1)
        found["tracks"] = 100 * moved.median().item() / size[1]
    return found


def _between_views(cameras: Tensor, reference: Tensor) -> Errors:
    """For two extrinsics [S, 3, 4] in float64; `eval.metrics.pose_errors` uses fp32, which is too coarse for a single
    layer.
    """
    if torch.equal(cameras, reference):  # products would leave their rounding
        return {"rotation": 0.0, "direction": 0.0}
    first, second = torch.triu_indices(len(cameras), len(cameras), offset=1)
    found, wanted = (relative_pose(each[first], each[second]) for each in (cameras, reference))
    return {
        "rotation": rotation_error_degrees(found[..., :3], wanted[..., :3]).median().item(),
        "direction": direction_error_degrees(found[..., 3], wanted[..., 3]).median().item(),
    }


def _maps(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: outputs[key].cpu() for key in ("depth", "world_points") if key in outputs}


def over_scenes(errors: Iterable[Errors]) -> Errors:
    """Combine the errors of a change on several scenes: root mean square per kind, over the scenes that have it."""
    kinds: dict[str, list[float]] = {}
    for of_scene in errors:
        for kind, value in of_scene.items():
            kinds.setdefault(kind, []).append(value)
    return {kind: math.sqrt(sum(v * v for v in values) / len(values)) for kind, values in kinds.items()}


def together(errors: Iterable[Errors]) -> Errors:
    """Predicted error of several changes if their errors are independent: root of the sum of squares, for each kind."""
    total: Errors = {}
    for of_change in errors:
        for kind, value in of_change.items():
            total[kind] = math.hypot(total.get(kind, 0.0), value)
    return total


def largest(errors: Errors) -> float:
    """The number that is ranked and limited: the largest error of all kinds, where one degree counts as one per
    cent.
    """
    return max(errors.values(), default=0.0)


def in_words(errors: Errors) -> str:
    """For example "rotation 0.02°, depth 0.21%"."""
    return ", ".join(f"{MEASURES[kind].title} {value:.3g}{MEASURES[kind].unit}" for kind, value in errors.items())
