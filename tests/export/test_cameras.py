"""cameras.json says where each camera stands and where it looks, at both resolutions."""

import json
from dataclasses import replace

import pytest
import torch

from vggt_int8.export.cameras import cameras_document
from vggt_int8.scene.scene import Scene


def test_entries_stand_in_input_order_with_their_sizes(scene: Scene) -> None:
    document = cameras_document(scene)
    assert document is not None
    assert [entry["file"] for entry in document["images"]] == ["a/1.jpg", "b/1.jpg"]
    assert [entry["index"] for entry in document["images"]] == [0, 1]
    second = document["images"][1]
    assert second["original"]["size"] == {"height": 280, "width": 260}
    assert second["model"]["size"] == {"height": 28, "width": 42}
    assert (second["scale"], second["offset"]) == ([0.1, 0.1], [8, 0])
    assert "camera from world" in document["convention"]["extrinsic"]


def test_numbers_agree_with_the_prediction(scene: Scene) -> None:
    document = cameras_document(scene)
    assert document is not None
    for entry, extrinsic, intrinsic in zip(document["images"], scene.extrinsic, scene.intrinsic, strict=True):
        stored = torch.tensor(entry["extrinsic"])
        assert torch.equal(stored, extrinsic)
        assert torch.equal(torch.tensor(entry["model"]["intrinsic"]), intrinsic)
        seen_from_camera = stored[:, :3] @ torch.tensor(entry["camera_center"]) + stored[:, 3]
        assert seen_from_camera.abs().max() < 1e-6


def test_the_original_intrinsic_projects_to_the_original_pixel(scene: Scene) -> None:
    document = cameras_document(scene)
    assert document is not None
    second = document["images"][1]
    ray = torch.tensor([0.1, -0.3, 1.0])
    x, y = (torch.tensor(second["model"]["intrinsic"]) @ ray)[:2].tolist()
    original = (torch.tensor(second["original"]["intrinsic"]) @ ray)[:2].tolist()
    assert original == pytest.approx([(x - 8) / 0.1, y / 0.1], rel=1e-5)


def test_an_infinite_focal_length_becomes_null(scene: Scene) -> None:
    assert scene.intrinsic is not None
    intrinsic = scene.intrinsic.clone()
    intrinsic[0, 0, 0] = torch.inf
    document = cameras_document(replace(scene, intrinsic=intrinsic))
    assert document is not None
    entry = json.loads(json.dumps(document, allow_nan=False))["images"][0]
    for resolution in ("model", "original"):
        matrix = entry[resolution]["intrinsic"]
        assert matrix[0][0] is None
        assert [value for row in matrix for value in row].count(None) == 1


def test_no_cameras_without_the_camera_head(scene: Scene) -> None:
    assert cameras_document(replace(scene, extrinsic=None, intrinsic=None)) is None
