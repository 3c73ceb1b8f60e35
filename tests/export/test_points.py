"""The point cloud: which pixels become points, which colours they carry, and a file that others can read."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from vggt_int8.export.frames import frame_pool
from vggt_int8.export.ply import write_ply
from vggt_int8.export.points import PointOptions, collect_points, select_points
from vggt_int8.geometry import unproject_depth
from vggt_int8.scene.scene import Scene

PIXELS = 2 * 28 * 42
PADDING = 28 * (42 - 26)


def read_ply(path: Path) -> np.ndarray:
    """Read any binary little-endian PLY with scalar vertex properties: written apart from the writer."""
    header, _, body = path.read_bytes().partition(b"end_header\n")
    lines = header.decode("ascii").splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    types = {"float": "<f4", "uchar": "u1"}
    fields = [(line.split()[2], types[line.split()[1]]) for line in lines if line.startswith("property")]
    count = int(next(line.split()[2] for line in lines if line.startswith("element vertex")))
    vertices = np.frombuffer(body, dtype=fields)
    assert len(vertices) == count
    return vertices


def test_ply_holds_the_cloud_and_normals_face_the_camera(tmp_path: Path, scene: Scene) -> None:
    cloud = collect_points(scene)
    assert cloud is not None
    with frame_pool() as pool:
        selection = select_points(scene, PointOptions(), pool)
        assert selection is not None
        write_ply(tmp_path / "points.ply", selection, pool)
        write_ply(tmp_path / "normals.ply", selection, pool, normals=True)
        write_ply(tmp_path / "one.ply", selection.at_most(1, pool), pool, confidence=False)
    vertices = read_ply(tmp_path / "points.ply")
    assert vertices.dtype.names == ("x", "y", "z", "red", "green", "blue", "confidence")
    assert np.array_equal(np.stack([vertices[name] for name in ("x", "y", "z")], axis=-1), cloud.points)
    assert np.array_equal(np.stack([vertices[name] for name in ("red", "green", "blue")], axis=-1), cloud.colors)
    assert np.array_equal(vertices["confidence"], cloud.confidence)
    assert len(read_ply(tmp_path / "one.ply")) == 1
    opened = trimesh.load(tmp_path / "normals.ply")  # a reader that knows nothing of this package
    assert np.array_equal(opened.vertices, cloud.points.astype(np.float64))
    assert np.array_equal(opened.colors[:, :3], cloud.colors)
    normals = np.stack([read_ply(tmp_path / "normals.ply")[name] for name in ("nx", "ny", "nz")], axis=-1)
    assert np.allclose(np.linalg.norm(normals, axis=-1), 1, atol=1e-5)
    first = cloud.frames == 0  # whose camera stands in the origin
    assert ((normals * cloud.points).sum(-1)[first] < 0).all()


def test_every_content_pixel_becomes_a_point_with_its_colour(scene: Scene) -> None:
    cloud = collect_points(scene, PointOptions(confidence_percentile=0))
    assert cloud is not None
    assert cloud.counts == {
        "written": PIXELS - PADDING,
        "padding": PADDING,
        "transparent": 0,
        "masked": 0,
        "not_finite": 0,
        "low_confidence": 0,
        "edges": 0,
        "voxel": 0,
        "over_max_points": 0,
    }
    assert scene.depth is not None
    # The first camera is the world: the depth of its pixels is the points' z.
    assert np.allclose(cloud.points[: 28 * 42, 2], scene.depth[0].reshape(-1).numpy())
    assert np.array_equal(cloud.colors[: 28 * 42], scene.colors[0].reshape(-1, 3).numpy())


def test_the_source_is_depth_unless_told_otherwise(scene: Scene) -> None:
    by_default = collect_points(scene, PointOptions(confidence_percentile=0))
    from_depth = collect_points(scene, PointOptions(source="depth", confidence_percentile=0))
    from_head = collect_points(scene, PointOptions(source="world_points", confidence_percentile=0))
    assert by_default is not None
    assert from_depth is not None
    assert from_head is not None
    assert np.array_equal(by_default.points, from_depth.points)
    assert np.allclose(from_head.points - from_depth.points, [1, 0, 0], atol=1e-6)
    without_depth = collect_points(replace(scene, depth=None, depth_conf=None), PointOptions(confidence_percentile=0))
    assert without_depth is not None
    assert np.array_equal(without_depth.points, from_head.points)


def test_the_least_confident_go_and_padding_does_not_count(scene: Scene) -> None:
    assert scene.depth is not None
    assert scene.depth_conf is not None
    assert scene.extrinsic is not None
    assert scene.intrinsic is not None
    confidence = scene.depth_conf.clone()
    content = torch.stack([scene.content(0), scene.content(1)])
    confidence[~content] = 100  # would push the percentile up
    cloud = collect_points(replace(scene, depth_conf=confidence))
    assert cloud is not None
    assert cloud.counts["low_confidence"] == pytest.approx((PIXELS - PADDING) / 4, abs=1)
    assert cloud.counts["written"] + cloud.counts["low_confidence"] == PIXELS - PADDING
    kept = content & (confidence >= np.percentile(confidence[content].numpy(), 25))
    expected = unproject_depth(scene.depth, scene.extrinsic, scene.intrinsic)[kept].numpy()
    assert np.allclose(cloud.points, expected, atol=1e-5)


def test_equal_confidence_drops_nothing(scene: Scene) -> None:
    cloud = collect_points(replace(scene, depth_conf=torch.ones(2, 28, 42)), PointOptions(confidence_percentile=50))
    assert cloud is not None
    assert cloud.counts["low_confidence"] == 0


def test_non_finite_points_are_dropped_and_counted(scene: Scene) -> None:
    assert scene.depth is not None
    assert scene.depth_conf is not None
    depth, confidence = scene.depth.clone(), scene.depth_conf.clone()
    depth[0, 3, 4] = torch.nan
    depth[0, 5, 6] = torch.inf
    confidence[0, 7, 8] = torch.nan
    depth[1, 0, 0] = torch.nan  # padding counts as padding
    cloud = collect_points(replace(scene, depth=depth, depth_conf=confidence), PointOptions(confidence_percentile=0))
    assert cloud is not None
    assert cloud.counts["not_finite"] == 3
    assert cloud.counts["padding"] == PADDING
    assert np.isfinite(cloud.points).all()
    assert sum(cloud.counts.values()) == PIXELS


def test_transparent_pixels_are_counted_apart_from_padding(scene: Scene) -> None:
    opaque = torch.ones(scene.size, dtype=torch.bool)
    opaque[:3, :7] = False
    transforms = [replace(scene.transforms[0], opaque=opaque), scene.transforms[1]]
    cloud = collect_points(replace(scene, transforms=transforms))
    assert cloud is not None
    assert (cloud.counts["padding"], cloud.counts["transparent"]) == (PADDING, 21)
    assert sum(cloud.counts.values()) == PIXELS


def test_a_scene_without_any_finite_point_gives_an_empty_cloud(scene: Scene) -> None:
    cloud = collect_points(replace(scene, depth=torch.full((2, 28, 42), torch.nan)))
    assert cloud is not None
    assert cloud.counts["written"] == 0
    assert cloud.points.shape == (0, 3)


def test_the_subset_is_random_but_repeatable(scene: Scene) -> None:
    first, again, other = (collect_points(scene, PointOptions(max_points=100, seed=seed)) for seed in (0, 0, 1))
    assert first is not None
    assert again is not None
    assert other is not None
    assert first.points.shape == (100, 3)
    assert np.array_equal(first.points, again.points)
    assert not np.array_equal(first.points, other.points)
    assert sum(first.counts.values()) == PIXELS
    assert len(np.unique(first.points, axis=0)) == 100
    every = collect_points(scene)
    assert every is not None
    shares = [np.bincount(cloud.frames) / len(cloud.frames) for cloud in (first, every)]
    assert np.abs(shares[0] - shares[1]).max() <= 1 / 100, "the same share of each image, but for rounding"
    place = {point.tobytes(): i for i, point in enumerate(every.points)}
    places = [place[point.tobytes()] for point in first.points]
    assert places == sorted(places), "image after image, row after row"


def test_a_source_whose_head_did_not_run_is_an_error(scene: Scene) -> None:
    with pytest.raises(ValueError, match="'depth' needs the depth and camera heads"):
        collect_points(replace(scene, intrinsic=None), PointOptions(source="depth"))
    with pytest.raises(ValueError, match="'world_points' needs the point head"):
        collect_points(replace(scene, world_points=None), PointOptions(source="world_points"))
    assert collect_points(replace(scene, depth=None, world_points=None)) is None


@pytest.mark.parametrize(
    "options", [{"confidence_percentile": 101}, {"confidence_percentile": -1}, {"max_points": 0}, {"source": "x"}]
)
def test_wrong_options_name_the_value(scene: Scene, options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(options.values())))):
        PointOptions(**options)


@pytest.mark.parametrize(
    "options",
    [{"confidence_percentile": True}, {"confidence_percentile": "25"}, {"max_points": True}, {"max_points": 1e4}],
)
def test_options_of_another_kind_name_the_value(scene: Scene, options: dict[str, object]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(TypeError, match=f"{name} is {value!r}; it must be an? (integer|number)"):
        PointOptions(**options)
