"""CO3Dv2's annotations: their cameras project as PyTorch3D's do, and scenes are read through them."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vggt_int8.data.camera import ModelError
from vggt_int8.data.co3d import categories, read_sequences
from vggt_int8.geometry import project_points
from vggt_int8.model.config import VGGTConfig
from vggt_int8.scorecard.captured import Co3dScenes

SIZE = (90, 60)  # portrait


def frame(sequence: str, number: int, kind: str = "ndc_isotropic") -> dict[str, Any]:
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(number)))[0]
    rotation = rotation * torch.linalg.det(rotation).sign()
    return {
        "sequence_name": sequence,
        "frame_number": number,
        "image": {"path": f"apple/{sequence}/images/frame{number:06d}.jpg", "size": list(SIZE)},
        "viewpoint": {
            "R": rotation.tolist(),
            "T": [0.1 * number, -0.2, 5.0],
            "focal_length": [2.1, 2.0],
            "principal_point": [0.05, -0.1],
            "intrinsics_format": kind,
        },
    }


def write(folder: Path, frames: list[Any]) -> Path:
    (folder / "apple").mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / "apple" / "frame_annotations.jgz", "wt") as file:
        json.dump(frames, file)
    for entry in frames:
        path = folder / entry["image"]["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE[::-1], (20 * entry["frame_number"], 9, 9)).save(path)
    return folder


@pytest.mark.parametrize("kind", ["ndc_isotropic", "ndc_norm_image_bounds"])
def test_points_fall_where_pytorch3d_has_them(tmp_path: Path, kind: str) -> None:
    entry = frame("a", 3, kind)
    model = read_sequences(write(tmp_path, [entry]) / "apple")["a"]
    points = torch.randn(20, 3, generator=torch.Generator().manual_seed(9))
    found, depth = project_points(points, model.images[0].extrinsic, model.cameras[0].intrinsic())
    view, (height, width) = entry["viewpoint"], SIZE
    theirs = points.numpy() @ np.array(view["R"]) + np.array(view["T"])  # x to the left, y up
    half = np.array([width, height]) / 2 if kind == "ndc_norm_image_bounds" else np.array([width, width]) / 2
    ndc = np.array(view["focal_length"]) * theirs[:, :2] / theirs[:, 2:] + np.array(view["principal_point"])
    np.testing.assert_allclose(found.numpy(), np.array([width, height]) / 2 - half * ndc, atol=1e-3)
    np.testing.assert_allclose(depth.numpy(), theirs[:, 2], atol=1e-5)


def test_sequences_are_scenes_in_the_order_of_their_frames(tmp_path: Path) -> None:
    frames = [frame("b", 11), frame("a", 10), frame("a", 2), frame("a", 7), frame("b", 1)]
    write(tmp_path, frames)
    data = Co3dScenes(tmp_path, VGGTConfig(img_size=56), views=2)
    assert [place.folder.name for place in data.places] == ["a", "b"]
    scene = next(iter(data))
    assert scene.images.shape == (2, 3, 56, 56)
    assert [round(255 * image[0].mean().item() / 20) for image in scene.images] == [2, 10]
    assert len(Co3dScenes(tmp_path / "apple", VGGTConfig(img_size=56), scenes=1)) == 1
    assert data.identity()["kind"] == "co3d"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"intrinsics_format": "screen"}, "intrinsics_format is 'screen'"),
        ({"R": [[1, 0], [0, 1]]}, "its viewpoint is none"),
        ({"focal_length": [float("inf"), 1]}, "its viewpoint is none"),
        ({"T": "here"}, "frame 0"),
    ],
)
def test_viewpoints_that_are_wrong(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    entry = frame("a", 1)
    entry["viewpoint"] |= change
    with pytest.raises(ModelError, match=says):
        read_sequences(write(tmp_path, [entry]) / "apple")


def test_files_that_are_wrong(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="pass a folder of CO3Dv2"):
        categories(tmp_path)
    entry = frame("a", 1)
    write(tmp_path, [entry])
    path = tmp_path / "apple" / "frame_annotations.jgz"
    content = path.read_bytes()
    for damaged in (content[:-9], content[:20], b"[]", gzip.compress(b"{}")):
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match=r"frame_annotations\.jgz"):
            read_sequences(tmp_path / "apple")
    entry["image"]["path"] = "../../etc/passwd"
    path.write_bytes(gzip.compress(json.dumps([entry]).encode()))
    with pytest.raises(ModelError, match="leaves the data set"):
        read_sequences(tmp_path / "apple")
