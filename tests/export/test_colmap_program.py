"""COLMAP's own program opens `sparse/0`, with names as people have them, and works on it (Debian's package `colmap`).

Its 3.8 is older than rigs and frames and reads three of the five files: what stands in images.bin counts there.
"""

import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vggt_int8.export import ExportOptions, PointOptions, Scene, write_scene

COLMAP = shutil.which("colmap")


def colmap(*arguments: object) -> str:
    assert COLMAP is not None
    environment = {**os.environ, "QT_QPA_PLATFORM": "offscreen"}
    done = subprocess.run([COLMAP, *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(COLMAP is None, reason="COLMAP's program is not installed")
@pytest.mark.filterwarnings("ignore:8 images have names with letters beyond ASCII")
def test_colmap_reads_the_model_and_undistorts_its_images(tmp_path: Path, exact: Scene) -> None:
    files = [tmp_path / f"photos/walk {index % 2}/gr\u00fcn {index}.png" for index in range(len(exact))]
    for file, colors in zip(files, exact.colors, strict=True):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(colors.numpy()).resize((448, 448), Image.Resampling.NEAREST).save(file)
    out = tmp_path / "out"
    out.mkdir()
    options = ExportOptions(PointOptions(confidence_percentile=0, max_points=2000), images="copy")
    summary = write_scene(out, replace(exact, files=list(files)), ("colmap",), options)["colmap"]
    told = colmap("model_analyzer", "--path", out / "sparse/0")
    for name, count in (("Registered images", 8), ("Points", 2000), ("Observations", summary["observations"])):
        assert int(re.findall(rf"{name}: (\d+)", told)[0]) == count, told
    assert float(re.findall(r"Mean reprojection error: ([\d.]+)px", told)[0]) < 0.1  # original pixels
    paths = ("--image_path", out / "images", "--input_path", out / "sparse/0", "--output_path", tmp_path / "dense")
    colmap("image_undistorter", *paths)
    for file in files:  # a pinhole is not distorted: the same pixels, where COLMAP found them by their names
        name = file.relative_to(tmp_path / "photos")
        same = np.asarray(Image.open(tmp_path / "dense/images" / name)) == np.asarray(Image.open(file))
        assert same.mean() > 0.99
