"""What is shown, as files for the visitor: any export under the filter of the moment, or the points as drawn."""

import io
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vggt_int8.export import ExportOptions, PointOptions, write_scene
from vggt_int8.export.ply import ply_of
from vggt_int8.viewer.reconstruction import Reconstruction
from vggt_int8.viewer.stage import Shown

AS_SHOWN = "ply, as shown"
EXPORTS = ("ply", "glb", "colmap", "npz", "depth")  # transforms names images by their paths, which a visitor lacks
LARGEST = 1 << 30  # bytes: the file is held in memory, and sent through the page's connection


def shown_points(parts: Sequence[Shown]) -> tuple[str, bytes]:
    """Name and content of a PLY file: the points that are drawn, where they stand and in the colours that they have."""
    points = np.concatenate([part.on_stage() for part in parts]) if parts else np.zeros((0, 3), np.float32)
    colors = np.concatenate([part.colors for part in parts]) if parts else np.zeros((0, 3), np.uint8)
    return "shown.ply", ply_of(points, colors)


def exported(format: str, reconstructions: Sequence[Reconstruction], percentile: float) -> tuple[str, bytes]:
    """Name and content of one file: what `vggt-int8 export --format` makes of all points, none of them sampled.

    Several files, and those of several reconstructions, come as a .zip. percentile: points whose confidence is below
    it are left out. Raises ValueError for another format, for nothing to export, and for more than a gigabyte.
    """
    if format not in EXPORTS:
        raise ValueError(f"format is {format!r}; choose one of {', '.join(EXPORTS)}")
    if not reconstructions:
        raise ValueError("nothing is shown, so there is nothing to export")
    with tempfile.TemporaryDirectory() as scratch:
        for number, one in enumerate(reconstructions):
            folder = Path(scratch) / f"{number}_{one.folder.expanduser().resolve().name}"
            folder.mkdir()
            points = PointOptions(source=one.source, confidence_percentile=percentile)
            write_scene(folder, one.scene, (format,), ExportOptions(points=points), cameras=format != "npz")
        files = sorted(path for path in Path(scratch).rglob("*") if path.is_file())
        if (size := sum(path.stat().st_size for path in files)) > LARGEST:
            command = f"vggt-int8 export {reconstructions[0].folder} -f {format} --confidence-percentile {percentile:g}"
            raise ValueError(f"{size / 1e9:.1f} GB are too much for a download from here: {command}")
        single = [path for path in files if path.name != "cameras.json"]
        if len(single) == 1:
            return single[0].name, single[0].read_bytes()
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
            for path in files:
                archive.write(path, path.relative_to(scratch))
        return f"{format}.zip", content.getvalue()
