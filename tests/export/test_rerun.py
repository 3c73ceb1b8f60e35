"""`scene.rrd`, checked by rerun's own program; and what is said where rerun is missing."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vggt_int8.export import Scene, Tracks, write_scene


@pytest.mark.slow
def test_the_file_holds_points_cameras_pictures_depth_and_tracks(tmp_path: Path, scene: Scene) -> None:
    pytest.importorskip("rerun", reason="the format rrd needs the extra rerun")
    tracks = Tracks(torch.ones(2, 3, 2), torch.ones(2, 3), torch.ones(2, 3))
    summary = write_scene(tmp_path, replace(scene, tracks=tracks), ("rrd",))
    assert summary["rrd"]["images"] == 2
    printed = subprocess.run(
        [sys.executable, "-m", "rerun_cli", "rrd", "print", "-vv", str(tmp_path / "scene.rrd")],
        capture_output=True, text=True, check=True, timeout=60,
    ).stdout  # fmt: skip
    for part in ("/world/points", "/world/cameras/0001_1/image/depth", "/world/cameras/0000_1/image/tracks"):
        assert part in printed
    for component in ("Points3D:positions", "Pinhole:image_from_camera", "Transform3D:mat3x3", "EncodedImage:blob"):
        assert component in printed
    verified = [sys.executable, "-m", "rerun_cli", "rrd", "verify", str(tmp_path / "scene.rrd")]
    subprocess.run(verified, check=True, timeout=60, capture_output=True)


def test_without_rerun_the_way_to_it_is_said(tmp_path: Path, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(ImportError, match=r"needs rerun.* pip install 'vggt-int8\[rerun\]'"):
        write_scene(tmp_path, scene, ("rrd", "glb"))
    assert not list(tmp_path.iterdir())
