"""`scene.rrd` for the rerun viewer: the one file that needs rerun (the extra `rerun`).

Entities: `world/points`; for each image `world/cameras/NNNN_name` with its pose, and below it `image` (pinhole camera
and picture), `image/depth` and, where points were tracked, `image/tracks`. Each image is at its own place of the
timeline `frame`, and stays from there on; points are there at all times. Colours are given as bytes: rerun wraps floats
above 1.
"""

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vggt_int8.export.frames import in_order
from vggt_int8.export.selection import PointCloud
from vggt_int8.export.tracks import VISIBLE, track_shades
from vggt_int8.quiet import quiet_import
from vggt_int8.scene.scene import Scene

MISSING = "format rrd needs rerun, which is not installed: pip install 'vggt-int8[rerun]'"
_QUALITY = 90  # of the pictures, as JPEG


def check_installed() -> None:
    """Raise ImportError, which says what to install, without rerun."""
    _rerun()


def write_rrd(
    path: Path,
    scene: Scene,
    cloud: PointCloud | None,
    pool: ThreadPoolExecutor,
    on_frame: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Write the file -> counts for the report. Without cameras, pictures and depth stand by themselves."""
    rr = _rerun()
    recording = rr.RecordingStream("vggt-int8", send_properties=False)
    recording.save(path)
    recording.log("world", rr.ViewCoordinates.RDF, static=True)  # x right, y down, z forward
    if cloud is not None:
        recording.log("world/points", rr.Points3D(cloud.points, colors=cloud.colors), static=True)

    def picture(index: int) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(scene.colors[index].numpy()).save(stream, "JPEG", quality=_QUALITY)
        return stream.getvalue()

    for index, content in enumerate(in_order(pool, picture, range(len(scene)))):
        recording.set_time("frame", sequence=index)
        _log_image(rr, recording, scene, index, content)
        on_frame()
    recording.flush()
    recording.disconnect()  # the file is complete from here on
    return {"images": len(scene), "points": 0 if cloud is None else len(cloud.points)}


def _log_image(rr: Any, recording: Any, scene: Scene, index: int, content: bytes) -> None:
    place = f"world/cameras/{scene.file_stem(index)}"
    if scene.extrinsic is not None and scene.intrinsic is not None:
        extrinsic = scene.extrinsic[index].numpy().astype(np.float64)
        rotation = extrinsic[:, :3].T
        recording.log(place, rr.Transform3D(translation=-rotation @ extrinsic[:, 3], mat3x3=rotation))
        intrinsic = scene.intrinsic[index].numpy().astype(np.float64).copy()
        intrinsic[:2, 2] += 0.5  # rerun centres the first pixel on (0.5, 0.5)
        height, width = scene.size
        if np.isfinite(intrinsic).all():
            recording.log(f"{place}/image", rr.Pinhole(image_from_camera=intrinsic, width=width, height=height))
    recording.log(f"{place}/image", rr.EncodedImage(contents=content, media_type="image/jpeg"))
    if scene.depth is not None:
        recording.log(f"{place}/image/depth", rr.DepthImage(scene.depth[index].numpy(), meter=1.0))
    if scene.tracks is not None:
        seen = scene.tracks.visibility[index].numpy() >= VISIBLE
        points = scene.tracks.points[index].numpy() + 0.5
        shades = track_shades(len(points))
        recording.log(f"{place}/image/tracks", rr.Points2D(points[seen], colors=shades[seen], radii=2.0))


def _rerun() -> Any:
    try:
        with quiet_import():
            import rerun
    except ImportError as error:
        raise ImportError(MISSING) from error
    return rerun
