"""Files for download: an export with the current filter, or the points as shown."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vggt_int8.export import ExportOptions, PointOptions
from vggt_int8.export.bundle import write_bundle
from vggt_int8.export.ply import ply_of
from vggt_int8.viewer.reconstruction import Reconstruction
from vggt_int8.viewer.stage import Shown

AS_SHOWN = "ply, as shown"
EXPORTS = ("ply", "glb", "colmap", "npz", "depth")  # transforms names images by their paths, which a visitor lacks
LARGEST = 1 << 30  # bytes: the file is held in memory, and sent through the page's connection


def shown_points(parts: Sequence[Shown]) -> tuple[str, bytes]:
    """Name and contents of a PLY file with the points as shown: their positions and colours."""
    points = np.concatenate([part.on_stage() for part in parts]) if parts else np.zeros((0, 3), np.float32)
    colors = np.concatenate([part.colors for part in parts]) if parts else np.zeros((0, 3), np.uint8)
    return "shown.ply", ply_of(points, colors)


def exported(format: str, reconstructions: Sequence[Reconstruction], percentile: float) -> tuple[str, bytes]:
    """Name and contents of one file as `vggt-int8 export --format` writes it, from all points without sampling.

    percentile: omit points with a lower confidence.

    Raises ValueError for an unknown format, an empty export, or more than a gigabyte.
    """
    if format not in EXPORTS:
        raise ValueError(f"format is {format!r}; choose one of {', '.join(EXPORTS)}")
    if not reconstructions:
        raise ValueError("nothing is shown, so there is nothing to export")
    named = {f"{number}_{one.folder.expanduser().resolve().name}": one for number, one in enumerate(reconstructions)}
    options = {
        name: ExportOptions(points=PointOptions(source=one.source, confidence_percentile=percentile))
        for name, one in named.items()
    }
    with tempfile.TemporaryDirectory() as scratch:
        scenes = {name: one.scene for name, one in named.items()}
        file = write_bundle(Path(scratch) / "bundle", scenes, format, options)
        if (size := file.stat().st_size) > LARGEST:
            command = f"vggt-int8 export {reconstructions[0].folder} -f {format} --confidence-percentile {percentile:g}"
            raise ValueError(f"{size / 1e9:.1f} GB are too much for a download from here: {command}")
        return file.name, file.read_bytes()
