"""The losses: zero error at the truth, known values beside it, and what a gradient does."""

import dataclasses
import math

import pytest
import torch

from vggt_int8.geometry import camera_to_pose_encoding
from vggt_int8.model import VGGTOutput
from vggt_int8.model.omega.network import VGGTOmegaOutput
from vggt_int8.scenes import SceneBatch, render_scenes, scene_seeds
from vggt_int8.training.config import LossConfig
from vggt_int8.training.losses import camera_loss, confident_loss, displacement_loss, scene_losses, track_loss


@pytest.fixture(scope="module")
def batch() -> SceneBatch:
    return render_scenes(scene_seeds("free", range(2)), 3, (24, 32), supersample=1, tracks=5)


def perfect_output(batch: SceneBatch) -> VGGTOutput:
    pose = camera_to_pose_encoding(batch.extrinsic, batch.intrinsic, (24, 32))
    ones = torch.ones_like(batch.depth)
    return VGGTOutput(
        pose_enc_list=(pose, pose),
        depth=batch.depth[..., None],
        depth_conf=ones,
        world_points=batch.world_points,
        world_points_conf=ones,
        track=batch.tracks,
        vis=batch.visibility.float(),
    )


def test_the_truth_costs_nothing(batch: SceneBatch) -> None:
    losses = scene_losses(perfect_output(batch), batch, LossConfig())
    assert set(losses) == {"camera", "depth", "point", "track", "total"}
    assert max(value.abs().item() for value in losses.values()) < 1e-5


def test_cameras_cost_what_they_move_points_by(batch: SceneBatch) -> None:
    """Of an Omega: its depth, however wrong, has no part in that, nor have pixels without depth."""
    holes = dataclasses.replace(batch, depth=batch.depth.clone(), valid=batch.valid.clone())
    holes.depth[0, 0, :4], holes.valid[0, 0, :4] = torch.inf, False
    extrinsic = batch.extrinsic.clone()
    extrinsic[..., 2, 3] += 0.25  # away from the camera, by so much in every view
    extrinsic.requires_grad_()
    assert displacement_loss(extrinsic, batch.intrinsic, holes).item() == pytest.approx(0.25, rel=1e-4)
    pose = camera_to_pose_encoding(batch.extrinsic, batch.intrinsic, (24, 32))
    output = VGGTOmegaOutput(pose_enc=pose, extrinsic=extrinsic, intrinsic=batch.intrinsic)
    output.depth, output.depth_conf = 3 * batch.depth[..., None], torch.ones_like(batch.depth)
    losses = scene_losses(output, batch, LossConfig(point=2.0))
    assert losses["point"].item() == pytest.approx(0.25, rel=1e-4)
    assert losses["total"].item() == pytest.approx(2 * 0.25 + losses["depth"].item(), rel=1e-4)
    losses["point"].backward()
    assert bool(extrinsic.grad[..., 2, 3].gt(0).all())


def test_later_camera_iterations_weigh_more(batch: SceneBatch) -> None:
    pose = camera_to_pose_encoding(batch.extrinsic, batch.intrinsic, (24, 32))
    off = pose.clone()
    off[..., 0] += 0.3  # one of three translations: a mean of 0.1
    assert camera_loss((pose, off), batch, gamma=0.6).item() == pytest.approx(0.1 / 1.6, rel=1e-4)
    assert camera_loss((off, pose), batch, gamma=0.6).item() == pytest.approx(0.06 / 1.6, rel=1e-4)


def test_confidence_settles_at_alpha_over_error() -> None:
    truth = torch.zeros(1, 1, 4, 4, 1)
    valid = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    value = torch.full_like(truth, 0.05)  # the same everywhere: no gradient term
    best = 0.2 / 0.05
    costs = [
        confident_loss(value, torch.full((1, 1, 4, 4), c), truth, valid, alpha=0.2).item()
        for c in (0.9 * best, best, 1.1 * best)
    ]
    assert costs[1] == pytest.approx(0.2 - 0.2 * math.log(best), rel=1e-5)
    assert costs[1] < min(costs[0], costs[2])


def test_edges_cost_and_invalid_pixels_do_not() -> None:
    truth = torch.zeros(1, 1, 2, 4, 1)
    value = truth.clone()
    value[..., 2:, :] = 1.0
    confidence, valid = torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2, 4, dtype=torch.bool)
    # 4 of 8 pixels are off by 1, and in both rows one difference to the right is.
    assert confident_loss(value, confidence, truth, valid, alpha=0.2).item() == pytest.approx((4 + 2) / 8)
    valid[..., 2:] = False
    broken = value.clone()
    broken[..., 2:, :] = torch.nan
    assert confident_loss(broken, confidence, truth, valid, alpha=0.2).item() == 0


def test_tracks_count_where_visible(batch: SceneBatch) -> None:
    off = batch.tracks + 16.0  # both coordinates by one unit: Huber gives 0.5 each
    hidden = torch.where(batch.visibility[..., None], batch.tracks, off)
    sure = batch.visibility.float()
    assert track_loss(hidden, sure, batch).item() == pytest.approx(0, abs=1e-5)
    assert track_loss(off, sure, batch).item() == pytest.approx(1, rel=1e-4)
    assert track_loss(batch.tracks, torch.full_like(sure, 0.5), batch).item() == pytest.approx(math.log(2), rel=1e-4)


def test_an_output_without_anything_to_learn_is_an_error(batch: SceneBatch) -> None:
    with pytest.raises(ValueError, match="nothing to learn"):
        scene_losses(VGGTOutput(images=batch.images), batch, LossConfig())
    batch_without = render_scenes(scene_seeds("free", range(2)), 3, (24, 32), supersample=1)
    with pytest.raises(ValueError, match="without tracks"):
        scene_losses(perfect_output(batch), batch_without, LossConfig())
