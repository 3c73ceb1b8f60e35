"""`write_scene`: all files of one reconstruction, and a summary of what was written and what was not."""

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from torch import Tensor

from vggt_int8.export.cameras import cameras_document
from vggt_int8.export.maps import write_confidence, write_depth
from vggt_int8.export.points import PointSource, collect_points, write_ply
from vggt_int8.export.scene import Scene
from vggt_int8.files import write_json
from vggt_int8.images import ImageTransform

SCENE_ENTRIES = ("cameras.json", "depth", "confidence", "points.ply", "report.json")


def write_scene(
    folder: Path,
    pred: Mapping[str, Tensor],
    transforms: Sequence[ImageTransform],
    names: Sequence[str],
    *,
    point_source: PointSource | None = None,
    confidence_percentile: float = 25.0,
    max_points: int | None = None,
    on_map: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write cameras.json, depth/, confidence/ and points.ply into `folder`; see `staged_folder`.

    pred: a `VGGTOutput` of one scene (B = 1). transforms, names: one per image, in input order; the names stand
    in cameras.json and, shortened, in file names. The options are those of `collect_points`. on_map: called with
    (maps done, all maps) after each depth or confidence map, for a progress bar.

    Returns a JSON-ready summary: an entry per output, None where the head that it needs did not run.
    """
    scene = Scene.from_prediction(pred, transforms, names)
    cameras = cameras_document(scene)
    if cameras is not None:
        write_json(folder / "cameras.json", cameras)
    cloud = collect_points(
        scene, source=point_source, confidence_percentile=confidence_percentile, max_points=max_points
    )
    if cloud is not None:
        write_ply(folder / "points.ply", cloud.points, cloud.colors)
    num_maps = len(names) * sum(maps is not None for maps in (scene.depth, scene.depth_conf))
    done = count(1)

    def tick() -> None:
        if on_map is not None:
            on_map(next(done), num_maps)

    return {
        "cameras": None if cameras is None else {"images": len(scene.names)},
        "depth": write_depth(folder / "depth", scene, tick),
        "confidence": write_confidence(folder / "confidence", scene, tick),
        "points": None if cloud is None else cloud.counts,
    }
