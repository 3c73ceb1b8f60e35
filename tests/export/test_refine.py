"""Bundle adjustment: it mends cameras that tracks deny, and changes nothing where it would not help."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vggt_int8.export import PointOptions, Scene, Tracks
from vggt_int8.export.frames import frame_pool
from vggt_int8.export.points import select_points
from vggt_int8.export.refine import Refined, refine_cameras
from vggt_int8.geometry import compose_extrinsics, project_points, relative_center_distance, rotation_error_degrees


@pytest.fixture(scope="module")
def exact(exact: Scene) -> Scene:
    """With the exact tracks of its first image's points."""
    count, (height, width) = len(exact), exact.size
    points = exact.points_from_depth(0)
    assert points is not None
    chosen = points[2::5, 2::5].reshape(-1, 3)
    places, depth = project_points(chosen.expand(count, -1, -1), exact.extrinsic, exact.intrinsic)
    inside = (places >= 0).all(-1) & (places[..., 0] < width - 1) & (places[..., 1] < height - 1) & (depth > 0)
    pixels = places.round().long().clamp(0, width - 1)
    seen = exact.depth[torch.arange(count)[:, None], pixels[..., 1], pixels[..., 0]]
    visible = (inside & ((seen - depth).abs() < 0.02 * depth)).float()
    return replace(exact, tracks=Tracks(places, visible, visible))


def refine(scene: Scene, count: int = 2000) -> Refined:
    with frame_pool() as pool:
        selection = select_points(scene, PointOptions(confidence_percentile=0), pool)
        assert selection is not None
        return refine_cameras(selection.at_most(count, pool), pool)


def moved(scene: Scene, much: float = 1.0) -> Scene:
    """Cameras a degree and a per cent off, focal lengths 0.5 %, or so much of that."""
    generator = torch.Generator().manual_seed(0)
    assert scene.extrinsic is not None
    assert scene.intrinsic is not None
    turn = torch.linalg.matrix_exp(_skew(0.01 * much * torch.randn(len(scene), 3, generator=generator)))
    shift = 0.01 * much * torch.randn(len(scene), 3, 1, generator=generator)
    extrinsic = compose_extrinsics(torch.cat([turn, shift], dim=-1), scene.extrinsic)
    extrinsic[0] = scene.extrinsic[0]
    intrinsic = scene.intrinsic.clone()
    intrinsic[:, [0, 1], [0, 1]] *= 1 + 0.005 * much
    return replace(scene, extrinsic=extrinsic, intrinsic=intrinsic)


def _skew(vectors: torch.Tensor) -> torch.Tensor:
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).reshape(-1, 3, 3)


def test_tracks_mend_cameras_and_the_world_stays_where_it_is(exact: Scene) -> None:
    assert exact.extrinsic is not None
    assert exact.intrinsic is not None
    wrong = moved(exact)
    found = refine(wrong)
    assert found.summary["observations"] == "tracks"
    assert found.summary["kept"], found.summary
    assert found.summary["after"] < 0.2 * found.summary["before"]
    assert found.summary["model_after"] < found.summary["model_before"]
    assert torch.equal(found.scene.extrinsic[0], exact.extrinsic[0])
    for error in (_rotation, _distance):
        assert error(found.scene, exact) < 0.3 * error(wrong, exact)
    assert found.scene.intrinsic is wrong.intrinsic


def _rotation(scene: Scene, truth: Scene) -> float:
    return float(rotation_error_degrees(scene.extrinsic[:, :, :3], truth.extrinsic[:, :, :3]).mean())


def _distance(scene: Scene, truth: Scene) -> float:
    return float(relative_center_distance(truth.extrinsic, scene.extrinsic).mean())


def test_without_tracks_points_are_looked_up_in_the_pictures(exact: Scene) -> None:
    wrong = replace(moved(exact, 0.4), tracks=None)
    found = refine(wrong)
    assert found.summary["observations"] == "pictures"
    assert found.summary["kept"], found.summary
    assert found.summary["after"] < 0.5 * found.summary["before"]
    for error in (_rotation, _distance):
        assert error(found.scene, exact) < 0.6 * error(wrong, exact)


@pytest.mark.slow
def test_cameras_that_are_right_stay_about_right(exact: Scene) -> None:
    assert exact.extrinsic is not None
    found = refine(replace(exact, tracks=None))
    if not found.summary["kept"]:
        assert found.summary["reason"]
        assert found.scene.extrinsic is exact.extrinsic
    assert _rotation(found.scene, exact) < 0.2  # degrees: a fifth of a pixel here
    assert _distance(found.scene, exact) < 0.02


def test_few_observations_are_not_enough(exact: Scene) -> None:
    found = refine(replace(exact, tracks=None), count=200)
    assert not found.summary["kept"]
    assert "too few observations" in found.summary["reason"]


def test_tracks_that_lie_change_nothing(exact: Scene) -> None:
    assert exact.tracks is not None
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 15, exact.tracks.points.shape)).float()
    found = refine(replace(exact, tracks=replace(exact.tracks, points=exact.tracks.points + noise)))
    assert not found.summary["kept"], found.summary
    assert torch.equal(found.scene.extrinsic, exact.extrinsic)
