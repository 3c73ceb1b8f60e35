"""Filters of points: each leaves out what it is for, counts it, and the counts sum up to all pixels."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vggt_int8.export import PointOptions, Scene
from vggt_int8.export.frames import depth_steps, surface_normals
from vggt_int8.export.percentile import counts_of, percentiles
from vggt_int8.export.points import collect_points
from vggt_int8.export.voxels import VoxelGrid
from vggt_int8.geometry import unproject_depth
from vggt_int8.scene.unproject import unproject, unproject_pixels

PIXELS = 2 * 28 * 42


def test_percentiles_of_parts_are_those_of_the_whole() -> None:
    percents = (0, 2, 25, 33.3, 50, 98, 100)
    rng = np.random.default_rng(0)
    parts = [rng.normal(0, 10 ** rng.uniform(-20, 20), size).astype(np.float32) for size in (1, 100, 7, 1000)]
    parts.append(np.float32([0.0, -0.0, 5, 5, 5]))
    counts = sum((counts_of(part) for part in parts), start=np.zeros(65536, np.int64))
    expected = np.percentile(np.concatenate(parts).astype(np.float64), percents)
    assert percentiles(counts, percents, lambda near: map(near, parts)) == pytest.approx(expected.tolist(), rel=1e-12)


def test_percentiles_of_equal_numbers_need_no_room_for_all_of_them() -> None:
    values, found = np.ones(100_000, np.float32), []

    def look_again(near: Callable[[np.ndarray], list[Any]]) -> list[list[Any]]:
        found.append(near(values))
        return found

    assert percentiles(counts_of(values), [25, 75], look_again) == [1, 1]
    assert sum(np.asarray(each).nbytes for each in found[0]) < values.nbytes / 100


def test_frames_are_unprojected_as_by_geometry(scene: Scene) -> None:
    assert scene.depth is not None
    assert scene.extrinsic is not None
    assert scene.intrinsic is not None
    expected = unproject_depth(scene.depth.double(), scene.extrinsic.double(), scene.intrinsic.double())
    for index in range(2):
        points = unproject(*(part[index].numpy() for part in (scene.depth, scene.extrinsic, scene.intrinsic)))
        assert points.dtype == np.float32
        # A few roundings of numbers up to about 5.
        assert np.abs(points - expected[index].numpy()).max() < 20 * 2**-24 * 5
        some = np.array([0, 5, 41, 42, 28 * 42 - 1])
        depth, camera = scene.depth[index].numpy(), (scene.extrinsic[index].numpy(), scene.intrinsic[index].numpy())
        few = unproject_pixels(depth.reshape(-1)[some], some, 42, *camera)
        assert np.abs(few - points.reshape(-1, 3)[some]).max() < 20 * 2**-24 * 5


def test_an_absolute_threshold_and_the_percentile_both_hold(scene: Scene) -> None:
    assert scene.depth_conf is not None
    content = torch.stack([scene.content(0), scene.content(1)])
    for low, options in (
        (3.0, PointOptions(min_confidence=3.0, confidence_percentile=0)),
        (2.5, PointOptions(min_confidence=2.5, confidence_percentile=80)),
    ):
        cloud = collect_points(scene, options)
        assert cloud is not None
        assert cloud.confidence is not None
        assert cloud.confidence.min() >= low
        bound = max(low, float(np.percentile(scene.depth_conf[content].numpy(), options.confidence_percentile)))
        assert cloud.counts["written"] == int((scene.depth_conf[content] >= bound).sum())
        assert sum(cloud.counts.values()) == PIXELS


def test_edges_of_depth_go_and_slopes_stay(scene: Scene) -> None:
    assert scene.depth is not None
    depth = scene.depth.clone()
    depth[0, :, 20:] *= 2
    cloud = collect_points(replace(scene, depth=depth), PointOptions(confidence_percentile=0, edges=0.2))
    assert cloud is not None
    first = cloud.pixels[cloud.frames == 0] % 42
    assert set(range(42)) - set(first.tolist()) == {19, 20}, "the columns beside the step"
    assert cloud.counts["edges"] == 2 * 28
    assert sum(cloud.counts.values()) == PIXELS
    with pytest.raises(ValueError, match=r"edges is 0\.2: .* the depth head did not run"):
        collect_points(replace(scene, depth=None), PointOptions(edges=0.2))
    steps = depth_steps(np.float32([[1, 1, 1], [1, np.nan, 1], [1, 1, 3]]))
    assert not (steps <= 1e9).any(), "whatever touches an unknown depth is no surface"


def test_one_point_a_voxel_the_most_confident(scene: Scene) -> None:
    every = collect_points(scene, PointOptions(confidence_percentile=0))
    thin = collect_points(scene, PointOptions(confidence_percentile=0, voxel=0.1))
    assert every is not None
    assert thin is not None
    assert every.confidence is not None
    assert thin.confidence is not None
    best: dict[tuple[int, ...], float] = {}
    for cell, value in zip(np.floor(every.points.astype(np.float64) / 0.1), every.confidence, strict=True):
        key = tuple(cell.astype(int).tolist())
        best[key] = max(best.get(key, 0.0), float(value))
    assert thin.counts["written"] == len(best)
    assert sorted(best.values()) == sorted(thin.confidence.tolist())
    assert sum(thin.counts.values()) == PIXELS
    with pytest.raises(ValueError, match="voxel is 1e-09; with points as far out as"):
        collect_points(scene, PointOptions(voxel=1e-9))


def test_voxels_are_the_same_in_pieces() -> None:
    rng = np.random.default_rng(0)
    points, confidence = rng.normal(size=(5000, 3)).astype(np.float32), rng.random(5000).astype(np.float32)
    whole, pieces = VoxelGrid(0.3), VoxelGrid(0.3)
    whole.add(points, confidence)
    for start in range(0, 5000, 700):
        pieces.add(points[start : start + 700], confidence[start : start + 700])
        pieces._merge()
    assert np.array_equal(whole.finish(), pieces.finish())


def test_masks_are_found_by_stem_and_stretched_over_the_original(tmp_path: Path, scene: Scene) -> None:
    (tmp_path / "b").mkdir()
    left_half = Image.new("L", (100, 100))
    left_half.paste(255, (0, 0, 50, 100))
    left_half.save(tmp_path / "1.png")
    left_half.save(tmp_path / "b" / "1.jpg.png")  # as COLMAP names it
    files = [Path("/photos/a/1.jpg"), Path("/photos/b/1.jpg")]
    cloud = collect_points(replace(scene, files=files), PointOptions(confidence_percentile=0, masks=tmp_path))
    assert cloud is not None
    columns = [sorted(set((cloud.pixels[cloud.frames == frame] % 42).tolist())) for frame in (0, 1)]
    assert columns == [list(range(21)), list(range(8, 21))], "the second image's content begins at column 8"
    assert cloud.counts["masked"] == 28 * (21 + 13)
    assert sum(cloud.counts.values()) == PIXELS


def test_missing_and_ambiguous_masks_are_named(tmp_path: Path, scene: Scene) -> None:
    files = [Path("/photos/a/1.jpg"), Path("/photos/b/2.jpg")]
    scene = replace(scene, files=files)
    (tmp_path / "masks").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "masks/1.png")
    with pytest.raises(ValueError, match=r"no mask in .*masks for 1 of 2 images: b/2\.jpg"):
        collect_points(scene, PointOptions(masks=tmp_path / "masks"))
    for name in ("2.png", "2.bmp"):
        Image.new("L", (4, 4)).save(tmp_path / "masks" / name)
    with pytest.raises(ValueError, match=r"several masks for b/2\.jpg: "):
        collect_points(scene, PointOptions(masks=tmp_path / "masks"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        collect_points(scene, PointOptions(masks=tmp_path / "nowhere"))


def test_normals_of_a_wall_stand_on_it() -> None:
    x, y = np.meshgrid(np.linspace(-1, 1, 9, dtype=np.float32), np.linspace(-1, 1, 7, dtype=np.float32))
    wall = np.stack([x, y, 2 + 0.5 * x], axis=-1)
    expected = np.array([0.5, 0, -1]) / np.hypot(0.5, 1)
    assert np.allclose(surface_normals(wall, np.zeros(3)), expected, atol=1e-5)
    wall[3, 4] = np.nan
    broken = surface_normals(wall, np.zeros(3))
    assert np.array_equal(broken[3, 3:6:2], np.zeros((2, 3))), "beside the unknown point there is no surface"
    assert np.isfinite(broken).all()
