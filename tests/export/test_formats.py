"""GLB, transforms.json, predictions.npz: opened by other programs, or checked against what their readers do."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from torch import Tensor

from tests.export.conftest import first_images
from vggt_int8.export import ExportOptions, PointOptions, Scene, write_scene
from vggt_int8.export.contact import Sheet
from vggt_int8.export.glb import linear_light
from vggt_int8.export.points import collect_points
from vggt_int8.geometry import camera_center, pose_encoding_to_camera


def glb_parts(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    assert content[:4] == b"glTF"
    version, total, length = np.frombuffer(content[4:16], "<u4")
    assert (version, total) == (2, len(content))
    return json.loads(content[20 : 20 + length]), content[28 + length :]


def accessor(document: dict[str, Any], binary: bytes, index: int) -> np.ndarray:
    entry = document["accessors"][index]
    view = document["bufferViews"][entry["bufferView"]]
    dtype = {5123: "<u2", 5125: "<u4", 5126: "<f4"}[entry["componentType"]]
    width = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}[entry["type"]]
    assert view["byteOffset"] % 4 == 0
    return np.frombuffer(binary, dtype, entry["count"] * width, view["byteOffset"]).reshape(-1, width)


def test_glb_opens_with_points_in_y_up_and_a_frustum_for_each_camera(tmp_path: Path, scene: Scene) -> None:
    write_scene(tmp_path, scene, ("glb",))
    cloud = collect_points(scene)
    assert cloud is not None
    assert scene.extrinsic is not None
    opened = trimesh.load(tmp_path / "scene.glb")
    assert isinstance(opened, trimesh.Scene)
    assert set(opened.geometry) == {"points", "frusta", "images"}
    transform, _ = opened.graph.get("points")
    assert np.allclose(transform, np.diag([1, -1, -1, 1]))
    assert np.allclose(opened.geometry["points"].vertices, cloud.points)
    linear = np.round(linear_light()[cloud.colors] * 255)
    assert np.abs(opened.geometry["points"].colors[:, :3] - linear).max() <= 1
    # The first camera stands in the origin and looks along -z, its image in front of it.
    assert np.allclose(opened.geometry["images"].vertices[:4].mean(0)[:2], 0, atol=0.05 * 0.1)
    images, _ = opened.graph.get("images")
    corners = trimesh.transform_points(opened.geometry["images"].vertices[:4], images)
    assert (corners[:, 2] < 0).all()
    assert corners[0, 1] > 0 > corners[2, 1], "the image's first row is above"


def test_glb_colours_are_linear_light_and_cameras_look_where_the_images_do(tmp_path: Path, scene: Scene) -> None:
    write_scene(tmp_path, scene, ("glb",), ExportOptions(points=PointOptions(confidence_percentile=0)))
    document, binary = glb_parts(tmp_path / "scene.glb")
    assert document["extensionsUsed"] == ["KHR_materials_unlit"]
    assert all("KHR_materials_unlit" in material["extensions"] for material in document["materials"])
    points = next(mesh for mesh in document["meshes"] if mesh["name"] == "points")["primitives"][0]
    colors = accessor(document, binary, points["attributes"]["COLOR_0"])
    assert np.array_equal(colors[: 28 * 42], linear_light()[scene.colors[0].numpy().reshape(-1, 3)])
    assert linear_light()[[0, 128, 255]].tolist() == pytest.approx([0, 0.2158605, 1], abs=1e-6)
    position = document["accessors"][points["attributes"]["POSITION"]]
    values = accessor(document, binary, points["attributes"]["POSITION"])
    assert position["min"] == values.min(0).tolist()
    assert position["max"] == values.max(0).tolist()
    assert scene.extrinsic is not None
    cameras = [node for node in document["nodes"] if "camera" in node]
    assert [node["name"] for node in cameras] == ["1.jpg", "1_2.jpg"]
    for index, node in enumerate(cameras):
        to_world = np.array(node["matrix"]).reshape(4, 4).T
        assert np.allclose(to_world[:3, 3], camera_center(scene.extrinsic[index]).numpy(), atol=1e-6)
        assert np.allclose(-to_world[:3, 2], scene.extrinsic[index, 2, :3].numpy(), atol=1e-6)  # looks along -z
    # The field of view of 0.8 rad spans the rows of the first image.
    assert document["cameras"][0]["perspective"]["yfov"] == pytest.approx(0.8, rel=1e-5)


def test_glb_of_no_points_or_no_cameras_is_still_a_file(tmp_path: Path, scene: Scene) -> None:
    for name, options, part in (("none", PointOptions(min_confidence=1e9), {}), ("eye", PointOptions(), None)):
        (tmp_path / name).mkdir()
        bare = replace(scene, extrinsic=None, depth=None) if part is None else scene
        summary = write_scene(tmp_path / name, bare, ("glb",), ExportOptions(points=options))
        document, _ = glb_parts(tmp_path / name / "scene.glb")
        names = {node["name"] for node in document["nodes"] if "mesh" in node}
        assert names == ({"frusta", "images"} if part == {} else {"points"})
        assert (summary["glb"]["points"] == 0) == (part == {})


def test_transforms_hold_opengl_cameras_and_intrinsics_in_every_frame(tmp_path: Path, scene: Scene) -> None:
    files: list[Path | None] = [tmp_path / "photos" / name for name in scene.names]
    (tmp_path / "out").mkdir()
    assert scene.depth is not None
    depth = scene.depth.clone()
    depth[0, 0, 0] = torch.nan  # is no reason to refuse the cameras
    write_scene(tmp_path / "out", replace(scene, files=files, depth=depth), ("transforms",))
    document = json.loads((tmp_path / "out/transforms.json").read_text())
    assert document.keys() == {"camera_model", "ply_file_path", "frames"}, "no intrinsics, applied_scale or transform"
    assert (tmp_path / "out" / document["ply_file_path"]).is_file()
    assert scene.extrinsic is not None
    assert scene.intrinsic is not None
    for index, frame in enumerate(document["frames"]):
        assert (tmp_path / "out" / frame["file_path"]).resolve() == files[index]
        to_world = np.array(frame["transform_matrix"])
        # nerfstudio's own way back to COLMAP's axes, of its colmap_utils
        to_world[:3, 1:3] *= -1
        assert np.allclose(np.linalg.inv(to_world)[:3], scene.extrinsic[index].numpy(), atol=1e-6)
        height, width = scene.transforms[index].original_size
        assert (frame["h"], frame["w"]) == (height, width)
        scale, offset = scene.transforms[index].scale, scene.transforms[index].offset
        assert frame["fl_x"] == pytest.approx(float(scene.intrinsic[index, 0, 0]) / scale[0])
        assert frame["cx"] == pytest.approx((float(scene.intrinsic[index, 0, 2]) + 0.5 - offset[0]) / scale[0])


def test_transforms_that_readers_would_divide_by_zero_on_are_refused(tmp_path: Path, scene: Scene) -> None:
    assert scene.extrinsic is not None
    files: list[Path | None] = [tmp_path / name for name in scene.names]
    turned = scene.extrinsic.clone()
    turned[1, :, 3] = 0
    with pytest.raises(ValueError, match="stand in one place"):
        write_scene(tmp_path, replace(scene, extrinsic=turned, files=files), ("transforms",))
    with pytest.raises(ValueError, match="two images or more"):
        write_scene(tmp_path, first_images(replace(scene, files=files), 1), ("transforms",))
    with pytest.raises(ValueError, match=r"2 have none: 1\.jpg, 1_2\.jpg"):
        write_scene(tmp_path, scene, ("transforms",))


def test_predictions_are_the_arrays_of_the_reference_by_its_names(
    tmp_path: Path, scene: Scene, pred: dict[str, Tensor]
) -> None:
    summary = write_scene(tmp_path, scene, ("npz",))
    with np.load(tmp_path / "predictions.npz") as found:  # checks every checksum while it reads
        assert summary["npz"]["arrays"] == found.files
        assert set(found.files) == {*pred, "world_points_from_depth"}
        for name in found.files:
            assert found[name].dtype == np.float32
            if name in pred and name != "pose_enc":  # whose quaternions need not have length 1
                tolerance = 0.5 / 255 + 1e-6 if name == "images" else 1e-5
                assert found[name].shape == pred[name][0].shape
                assert np.allclose(found[name], pred[name][0].numpy(), atol=tolerance), name
        camera = pose_encoding_to_camera(torch.from_numpy(found["pose_enc"]), scene.size)
        assert np.allclose(camera[0].numpy(), found["extrinsic"], atol=1e-6)
        assert np.allclose(camera[1].numpy(), found["intrinsic"], rtol=1e-5)
        assert np.allclose(found["world_points_from_depth"] + [1, 0, 0], found["world_points"], atol=1e-5)


def test_predictions_leave_out_what_did_not_run(tmp_path: Path, scene: Scene) -> None:
    write_scene(tmp_path, replace(scene, depth=None, depth_conf=None, extrinsic=None), ("npz",))
    with np.load(tmp_path / "predictions.npz") as found:
        assert set(found.files) == {"images", "intrinsic", "world_points", "world_points_conf"}


def test_unknown_formats_and_options_name_themselves(tmp_path: Path, scene: Scene) -> None:
    with pytest.raises(ValueError, match="no format 'obj': choose from depth, ply"):
        write_scene(tmp_path, scene, ("obj",))
    with pytest.raises(ValueError, match="no format to write"):
        write_scene(tmp_path, scene, ())
    with pytest.raises(ValueError, match="image_scales has 3"):
        ExportOptions(images="copy", image_scales=(3,))
    with pytest.raises(ValueError, match="copy or link these"):
        ExportOptions(image_scales=(2,))
    assert not list(tmp_path.iterdir())


def test_a_sheet_of_many_images_stays_one_picture(tmp_path: Path, scene: Scene) -> None:
    count = 3000
    transforms, colors = scene.transforms[:1] * count, scene.colors[:1].expand(count, -1, -1, -1)
    sheet = Sheet(Scene(scene.names[:1] * count, transforms, colors, None, None, None, None), 1)
    for index in (0, count - 1):
        sheet.paste(index, sheet.tiles(index, [np.full(scene.size, 255, np.uint8)]))
    size = sheet.save(tmp_path / "sheet.jpg", [(True, ("1", "depth 2", "3"))])
    with Image.open(tmp_path / "sheet.jpg") as picture:
        assert picture.size == (size["width"], size["height"])
        assert picture.width < 2500
        assert picture.height < 12000
