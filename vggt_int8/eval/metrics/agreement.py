"""How far one model's geometry is from another's for the same images, in degrees and per cent: what a person can judge.

Nothing is aligned first: two models of one checkpoint share the first camera's frame and the scale.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from vggt_int8.geometry import pose_encoding_to_camera, relative_center_distance, rotation_error_degrees


def geometric_differences(
    reference: Mapping[str, Tensor], other: Mapping[str, Tensor], image_size: tuple[int, int]
) -> dict[str, dict[str, float]]:
    """Outputs of two models for the same images of size (H, W) -> `{"<what>_<unit>": {"<statistic>": value}}`.

    Where both have `pose_enc` [..., S, 9] (its mean and maximum over frames):
    rotation_degrees: angle between a frame's two rotations.
    center_percent: distance between a frame's two camera centres, in per cent of the largest distance of a reference
        camera from the first one; left out where the reference's cameras do not move.
    field_of_view_degrees: difference of the two fields of view (all heights and widths).
    Where both have `depth` [..., S, H, W, 1] or `world_points` [..., S, H, W, 3] (median and 90th percentile, p90, over
    pixels):
    depth_percent: |other - reference| / |reference|.
    points_percent: distance between a pixel's two points over the reference point's distance from the first camera.

    Nothing is aligned first: two models of one checkpoint share the first camera's frame and the scale. NaN shows.
    """
    found: dict[str, dict[str, float]] = {}
    if _both(reference, other, "pose_enc", width=9):
        found |= _cameras(reference["pose_enc"].double(), other["pose_enc"].double(), image_size)
    for key, name, width in (("depth", "depth_percent", 1), ("world_points", "points_percent", 3)):
        if _both(reference, other, key, width=width):
            found[name] = _percent(reference[key].double(), other[key].double())
    return found


def _both(reference: Mapping[str, Tensor], other: Mapping[str, Tensor], key: str, width: int) -> bool:
    shapes = [output[key].shape for output in (reference, other) if key in output]
    return len(shapes) == 2 and all(len(shape) > 1 and shape[-1] == width for shape in shapes)


def _cameras(reference: Tensor, other: Tensor, image_size: tuple[int, int]) -> dict[str, dict[str, float]]:
    first, second = (pose_encoding_to_camera(pose, image_size)[0] for pose in (reference, other))
    errors = {
        "rotation_degrees": rotation_error_degrees(first[..., :3], second[..., :3]),
        "center_percent": 100 * relative_center_distance(first, second),
        "field_of_view_degrees": torch.rad2deg((other[..., 7:] - reference[..., 7:]).abs()),
    }
    if errors["center_percent"].isinf().all() or first.shape[-3] == 1:
        del errors["center_percent"]
    return {name: {"mean": error.mean().item(), "max": error.max().item()} for name, error in errors.items()}


def _percent(reference: Tensor, other: Tensor) -> dict[str, float]:
    error, size = (other - reference).norm(dim=-1), reference.norm(dim=-1)
    relative = torch.where(error == 0, 0.0, 100 * error / size)  # also where both are zero; NaN is not equal to 0
    # numpy's percentile: torch.quantile refuses more than 2^24 values.
    median, p90 = np.percentile(relative.flatten().numpy(), [50, 90])
    return {"median": float(median), "p90": float(p90)}
