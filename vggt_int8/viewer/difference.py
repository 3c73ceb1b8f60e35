"""Differences between two reconstructions of the same images, for each point and each camera.

Measured like `vggt-int8 compare`: both use the first camera as the world frame, without further alignment. The lengths
of two models can differ by a factor, which is reported and can be removed.
"""

from dataclasses import dataclass

import numpy as np
import torch

from vggt_int8.export import Scene
from vggt_int8.export.color import Array
from vggt_int8.geometry import relative_center_distance, rotation_error_degrees
from vggt_int8.viewer.cloud import Cloud


@dataclass(frozen=True)
class Difference:
    """Difference of a reconstruction from the first one."""

    scale: float  # by which its lengths are multiplied to have the first one's: median over points
    points: Array  # [N]: distance between a pixel's two points over the first one's distance from the first camera
    rotation_degrees: float | None  # largest over cameras; None without cameras
    center_percent: float | None  # largest distance of centres over the first one's largest camera distance

    def describe(self) -> str:
        """A one-line summary."""
        known = self.points[np.isfinite(self.points)]
        if not known.size:
            return "no point is finite in both"
        median, p90 = np.percentile(known, (50, 90))
        parts = [f"points {median:.2%} apart (median; 90 %: {p90:.2%})"]
        if self.rotation_degrees is not None:
            parts.append(f"cameras up to {self.rotation_degrees:.2f}°")
        if self.center_percent is not None:
            parts.append(f"{self.center_percent / 100:.2%} of the cameras' extent")
        return f"{', '.join(parts)}; its lengths times {self.scale:.4f} would fit the first"


def why_not_comparable(first: tuple[Scene, Cloud], other: tuple[Scene, Cloud]) -> str | None:
    """Why two reconstructions cannot be compared point by point; None if they show the same images."""
    (scene, cloud), (other_scene, other_cloud) = first, other
    if len(scene) != len(other_scene):
        return f"they have {len(scene)} and {len(other_scene)} images"
    if scene.size != other_scene.size:
        return f"their images have {scene.size} and {other_scene.size} pixels (height, width)"
    if cloud.colors.shape != other_cloud.colors.shape or not np.array_equal(cloud.colors, other_cloud.colors):
        return "they show different images"
    return None


def difference_of(first: tuple[Scene, Cloud], other: tuple[Scene, Cloud], *, same_scale: bool = False) -> Difference:
    """Difference of two reconstructions for which `why_not_comparable` gives None.

    same_scale: first multiply the other's lengths by `Difference.scale`.
    """
    (scene, cloud), (other_scene, other_cloud) = first, other
    both = cloud.usable & other_cloud.usable
    sizes, other_sizes = (np.linalg.norm(c.points, axis=1) for c in (cloud, other_cloud))
    measurable = both & (sizes > 0) & (other_sizes > 0)
    scale = float(np.median(sizes[measurable] / other_sizes[measurable])) if measurable.any() else 1.0
    factor = np.float32(scale if same_scale else 1.0)
    distances = np.linalg.norm(other_cloud.points * factor - cloud.points, axis=1)
    points = np.full(len(distances), np.nan, np.float32)
    points[measurable] = distances[measurable] / sizes[measurable]
    rotation = center = None
    if scene.extrinsic is not None and other_scene.extrinsic is not None:
        one, two = scene.extrinsic.double(), other_scene.extrinsic.double()
        two = torch.cat([two[..., :3], two[..., 3:] * float(factor)], dim=-1)
        rotation = float(rotation_error_degrees(one[:, :, :3], two[:, :, :3]).max())
        relative = relative_center_distance(one, two)
        center = 100 * float(relative.max()) if len(scene) > 1 and bool(relative.isfinite().all()) else None
    return Difference(scale, points, rotation, center)
