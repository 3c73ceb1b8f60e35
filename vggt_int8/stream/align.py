"""Aligns two windows: the similarity transform between their worlds, from the frames that both contain, and its drift.

Both windows saw the same pixels of the shared frames, so every pixel gives a pair of points, and every frame a pair of
cameras. Points determine scale and translation best; cameras help where the points of a frame are few or far away.
Pairs are weighted by the smaller confidence, with cameras together as much as all points together, and outliers (moving
objects, sky, edges) are down-weighted.
"""

from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vggt_int8.geometry import camera_center, rotation_error_degrees, unproject_depth
from vggt_int8.similarity import Similarity, robust_similarity

POINTS_PER_FRAME = 512
LEAST_CONFIDENT = 0.3  # of the pixels of a frame, which are left out
CAMERA_SHARE = 0.8  # of all weight


class Views(NamedTuple):
    """Frames as one window sees them, on the CPU in fp32; `content` is False on padding."""

    extrinsic: Tensor  # [S, 3, 4] camera from this window's world
    intrinsic: Tensor  # [S, 3, 3]
    depth: Tensor  # [S, H, W]
    confidence: Tensor  # [S, H, W], above 1
    content: Tensor  # [S, H, W] bool

    def of(self, frames: slice) -> "Views":
        return Views(*(part[frames] for part in self))


@dataclass(frozen=True)
class Drift:
    """How much two windows disagree on their shared frames after alignment.

    frames: number of shared frames.
    scale: of the new window relative to the old one.
    rotation_degrees: the median angle between a frame's two cameras.
    translation: the median distance between a frame's two camera centers, divided by the median depth.
    depth: the median relative difference of depths.
    inliers: the share of point pairs closer than 5 % of their depth.
    """

    frames: int
    scale: float
    rotation_degrees: float
    translation: float
    depth: float
    inliers: float

    def to_document(self) -> dict[str, float]:
        return {name: round(value, 6) for name, value in asdict(self).items()}


def align(old: Views, new: Views) -> tuple[Similarity, Drift]:
    """The similarity transform from the new window's world to the old one's, from the same frames in both.

    Raises ValueError without any common frame, or without any pixel that has finite depth in both.
    """
    if not len(old.depth) or len(old.depth) != len(new.depth):
        raise ValueError(f"windows are aligned by the frames that both have; got {len(old.depth)} and {len(new.depth)}")
    source, target, weights, unit = _point_pairs(old, new)
    reach = unit.median()
    cameras = [_camera_points(views.extrinsic, reach / ratio) for views, ratio in ((new, _ratio(old, new)), (old, 1.0))]
    share = CAMERA_SHARE / (1 - CAMERA_SHARE) * weights.sum() / len(cameras[0])
    found, off = robust_similarity(
        torch.cat([source, cameras[0]]),
        torch.cat([target, cameras[1]]),
        torch.cat([weights, share.expand(len(cameras[0]))]),
        torch.cat([unit, reach.expand(len(cameras[0]))]),
    )
    return found, _drift(found, old, new, off[: len(source)], reach.item())


def _point_pairs(old: Views, new: Views) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Points of the new window [N, 3], of the old one [N, 3], weights [N], depths in the old one [N]."""
    pairs: list[tuple[Tensor, ...]] = []
    points = [unproject_depth(views.depth, views.extrinsic, views.intrinsic) for views in (new, old)]
    for frame in range(len(old.depth)):
        trust = torch.minimum(old.confidence[frame], new.confidence[frame]).double()
        good = old.content[frame] & trust.isfinite()
        for views, cloud in zip((new, old), points, strict=True):
            depth = views.depth[frame]
            good &= depth.isfinite() & (depth > 0) & cloud[frame].isfinite().all(-1)
        places = good.flatten().nonzero()[:, 0]
        if not len(places):
            continue
        trust = trust.flatten()
        least = trust[places].quantile(LEAST_CONFIDENT)
        places = places[trust[places] >= least] if len(places) > 2 else places
        places = places[:: max(len(places) // POINTS_PER_FRAME, 1)]
        weights = trust[places]
        clouds = [cloud[frame].flatten(0, 1)[places].double() for cloud in points]
        pairs.append((*clouds, weights / weights.mean(), old.depth[frame].flatten()[places].double()))
    if not pairs:
        raise ValueError("the frames that both windows have hold no pixel of finite depth in both: nothing to align by")
    source, target, weights, unit = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return source, target, weights, unit


def _ratio(old: Views, new: Views) -> float:
    """Depths of the old window over those of the new one."""
    both = old.depth.double() / new.depth.double()
    return both[both.isfinite() & (both > 0) & old.content].median().item()


def _camera_points(extrinsic: Tensor, reach: Tensor | float) -> Tensor:
    """[4 S, 3]: the center of each camera and a point at distance `reach` along each axis, which fix its rotation."""
    extrinsic = extrinsic.double()
    centers = camera_center(extrinsic)
    axes = extrinsic[..., :3]  # row i: axis i of the camera in the world
    return torch.cat([centers[:, None], centers[:, None] + reach * axes], dim=1).flatten(0, 1)


def _drift(found: Similarity, old: Views, new: Views, off: Tensor, reach: float) -> Drift:
    moved = found.apply_to_extrinsic(new.extrinsic)
    apart = (camera_center(moved) - camera_center(old.extrinsic.double())).norm(dim=-1)
    depth = (found.scale * new.depth / old.depth - 1).abs()
    return Drift(
        frames=len(old.depth),
        scale=found.scale,
        rotation_degrees=rotation_error_degrees(moved[..., :3], old.extrinsic[..., :3].double()).median().item(),
        translation=apart.median().item() / reach,
        depth=depth[depth.isfinite() & old.content].median().item(),
        inliers=(off < 0.05).double().mean().item(),
    )
