"""points.ply: the coloured point cloud of what the images show, without non-finite and the least confident points."""

from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from vggt_int8.export.color import Array, Colors
from vggt_int8.export.scene import Scene
from vggt_int8.plain_data import check_integer, shown

PointSource = Literal["depth", "world_points"]
SEED = 0  # of the random subset under `max_points`

_VERTEX = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1")])
_PLY_NAMES = {"f": "float", "u": "uchar"}


@dataclass(frozen=True)
class PointCloud:
    """N points with colours, and where the other pixels went: the counts sum up to all pixels."""

    points: Array  # [N, 3] world coordinates
    colors: Colors  # [N, 3]
    counts: dict[str, int]  # written, padding, transparent, not_finite, low_confidence, over_max_points


def check_point_options(source: str | None, confidence_percentile: float, max_points: int | None) -> None:
    """Raise ValueError or TypeError, naming the value, for what `collect_points` does not take; needs no scene."""
    if source is not None and source not in get_args(PointSource):
        raise ValueError(f"source is {source!r}; it must be {' or '.join(map(repr, get_args(PointSource)))}, or None")
    if isinstance(confidence_percentile, bool) or not isinstance(confidence_percentile, Real):
        raise TypeError(f"confidence_percentile is {shown(confidence_percentile)}; it must be a number from 0 to 100")
    if not 0 <= confidence_percentile <= 100:
        raise ValueError(f"confidence_percentile is {confidence_percentile}; it must be from 0 to 100")
    if max_points is not None:
        check_integer("max_points", max_points, ", or None for all")
        if max_points < 1:
            raise ValueError(f"max_points is {max_points}; it must be at least 1, or None for all")


def collect_points(
    scene: Scene,
    *,
    source: PointSource | None = None,
    confidence_percentile: float = 25.0,
    max_points: int | None = None,
    seed: int = SEED,
) -> PointCloud | None:
    """One point per pixel, then the filters in the order of `PointCloud.counts`; None if the scene has no points.

    source: `depth` (unprojected with the cameras, the more accurate way by VGGT's authors) or `world_points` (the
    point head). None takes `depth` where the scene has depth and cameras.
    confidence_percentile: drop points whose confidence lies below this percentile of the finite ones, 0 to 100.
    max_points: keep a random subset of at most this many, the same for the same seed.
    """
    check_point_options(source, confidence_percentile, max_points)
    points, confidence = _points_and_confidence(scene, source)
    if points is None:
        return None
    points = points.reshape(-1, 3)
    transparent = int(scene.transparent.sum())
    counts = {"written": 0, "padding": int((~scene.content).sum()) - transparent, "transparent": transparent}
    keep = scene.content.reshape(-1)

    finite = keep & points.isfinite().all(dim=-1)
    if confidence is not None:
        finite &= confidence.reshape(-1).isfinite()
    counts["not_finite"] = int(keep.sum() - finite.sum())
    keep = finite

    if confidence is not None and keep.any():
        # numpy's percentile: torch.quantile refuses more than 2^24 values, about 80 images
        values = confidence.reshape(-1)
        keep = keep & (values >= float(np.percentile(values[keep].numpy(), confidence_percentile)))
    counts["low_confidence"] = int(finite.sum() - keep.sum())

    indices = keep.nonzero().squeeze(-1)
    chosen = indices
    if max_points is not None and len(indices) > max_points:
        order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(seed))
        chosen = indices[order[:max_points].sort().values]
    counts["over_max_points"] = len(indices) - len(chosen)
    counts["written"] = len(chosen)
    return PointCloud(points[chosen].numpy(), scene.colors.reshape(-1, 3)[chosen].numpy(), counts)


def write_ply(path: Path, points: Array, colors: Colors) -> None:
    """Binary little-endian PLY: points [N, 3] float32, colors [N, 3] uint8."""
    vertices = np.empty(len(points), dtype=_VERTEX)
    for i, name in enumerate(("x", "y", "z")):
        vertices[name] = points[:, i]
    for i, name in enumerate(("red", "green", "blue")):
        vertices[name] = colors[:, i]
    properties = [f"property {_PLY_NAMES[_VERTEX[name].kind]} {name}" for name in _VERTEX.names or ()]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}", *properties, "end_header"]
    with path.open("wb") as file:
        file.write(("\n".join(header) + "\n").encode("ascii"))
        file.write(vertices.tobytes())


def _points_and_confidence(scene: Scene, source: PointSource | None) -> tuple[Tensor | None, Tensor | None]:
    from_depth = scene.points_from_depth() if source != "world_points" else None
    if source is not None and (from_depth if source == "depth" else scene.world_points) is None:
        needs = "the depth and camera heads" if source == "depth" else "the point head"
        raise ValueError(f"source {source!r} needs {needs}, which did not run")
    if from_depth is not None:
        return from_depth, scene.depth_conf
    return scene.world_points, scene.world_points_conf
