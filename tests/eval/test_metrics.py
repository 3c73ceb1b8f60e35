"""Scores on cameras and depths whose errors are known beforehand."""

import dataclasses
import math

import pytest
import torch

from vggt_int8.eval.metrics import (
    ScoreKeeper,
    depth_scores,
    focal_ratios,
    focal_scores,
    pose_errors,
    pose_scores,
)
from vggt_int8.geometry import quaternion_to_rotation
from vggt_int8.scenes import render_scenes, scene_seeds


def turned(extrinsic: torch.Tensor, view: int, degrees: float) -> torch.Tensor:
    """The camera of one view turned in place about its own y axis."""
    half = math.radians(degrees) / 2
    turn = quaternion_to_rotation(torch.tensor([0.0, math.sin(half), 0.0, math.cos(half)]))
    changed = extrinsic.clone()
    changed[:, view] = turn @ extrinsic[:, view]
    return changed


def test_true_poses_score_perfectly_at_any_scale() -> None:
    truth = render_scenes(scene_seeds("free", range(6)), 4, (16, 16), supersample=1).extrinsic
    scaled = truth.clone()
    scaled[..., 3] *= 3.7
    rotation, translation = pose_errors(scaled, truth)
    assert rotation.shape == (6, 6)
    assert rotation.max() < 0.1
    assert translation.max() < 0.1
    scores = pose_scores(rotation, translation)
    assert scores.auc_30 == scores.auc_3 == 100
    assert scores.pairs == 36


def test_one_camera_turned_by_ten_degrees() -> None:
    truth = render_scenes(scene_seeds("free", range(6)), 4, (16, 16), supersample=1).extrinsic
    rotation, translation = pose_errors(turned(truth, view=2, degrees=10.5), truth)
    pairs = torch.triu_indices(4, 4, offset=1)
    with_third = (pairs == 2).any(0)
    torch.testing.assert_close(rotation[:, with_third], torch.full((6, 3), 10.5), atol=0.05, rtol=0)
    assert rotation[:, ~with_third].max() < 0.1
    # Half of the pairs are off by 10.5 degrees: thresholds 11 ... 30 count them.
    scores = pose_scores(rotation, torch.zeros_like(translation))
    assert scores.auc_30 == pytest.approx(100 * (0.5 + 0.5 * 20 / 30), abs=1e-3)
    assert scores.auc_5 == pytest.approx(50, abs=1e-3)


def test_pose_scores_by_hand() -> None:
    """The larger error of each of four pairs is 0.5, 1.5, 2.5 and 40 degrees."""
    rotation = torch.tensor([[0.5, 1.0], [2.5, 3.0]])
    translation = torch.tensor([[0.1, 1.5], [2.0, 40.0]])
    scores = pose_scores(rotation, translation)
    assert scores.auc_3 == pytest.approx(100 * (1 + 2 + 3) / (3 * 4))
    assert scores.auc_5 == pytest.approx(100 * (1 + 2 + 3 + 3 + 3) / (5 * 4))
    assert scores.auc_15 == pytest.approx(100 * (1 + 2 + 13 * 3) / (15 * 4))
    assert scores.auc_30 == pytest.approx(100 * (1 + 2 + 28 * 3) / (30 * 4))
    assert (scores.rotation_median, scores.translation_median, scores.pairs) == (1.0, 1.5, 4)
    assert (scores.rra_5, scores.rra_30) == (100, 100)  # all four are below
    assert (scores.rta_5, scores.rta_15, scores.rta_30) == (75, 75, 75)
    far = pose_scores(torch.tensor([4.0, 5.0, 14.0, 29.0, 31.0]), torch.zeros(5))
    assert (far.rra_5, far.rra_15, far.rra_30, far.rta_5) == pytest.approx((20, 60, 80, 100))
    on_the_threshold = pose_scores(torch.tensor([3.0]), torch.tensor([0.0]))
    assert (on_the_threshold.auc_3, on_the_threshold.auc_5) == (0, pytest.approx(100 * 2 / 5)), "below, not at"


def test_depth_scores_by_hand() -> None:
    truth = torch.tensor([1.0, 2.0, 4.0, 5.0, 10.0]).view(1, 1, 1, 5)
    predicted = torch.tensor([0.5, 1.0, 2.0, 3.0, 2.0]).view(1, 1, 1, 5)  # truth / prediction: 2, 2, 2, 5/3, 5
    scores = depth_scores(predicted, truth, torch.ones(1, 1, 1, 5, dtype=torch.bool))
    # Twice the prediction: 1, 2, 4, 6, 4. Off by 1/5 and 6/10; 6/5 is within a factor of 1.25, 10/4 is not.
    assert scores.abs_rel == pytest.approx((0.2 + 0.6) / 5)
    assert scores.delta_125 == pytest.approx(80)


def test_a_translation_that_points_backwards_is_wrong() -> None:
    truth = torch.eye(3, 4).repeat(1, 2, 1, 1)
    truth[:, 1, :, 3] = torch.tensor([1.0, 0.0, 0.0])
    wrong = truth.clone()
    wrong[:, 1, :, 3] *= -1
    assert pose_errors(wrong, truth)[1].item() == pytest.approx(180)


def test_cameras_that_never_move_are_wrong_unless_they_do_not() -> None:
    truth = torch.eye(3, 4).repeat(1, 3, 1, 1)
    still = truth.clone()
    truth[0, 2, 0, 3] = 1.0
    assert pose_errors(still, truth)[1].tolist() == [[0.0, 90.0, 90.0]]
    assert pose_errors(truth, still)[1].tolist() == [[0.0, 0.0, 0.0]]


def test_depth_scores_forgive_scale_alone() -> None:
    truth = torch.rand(3, 2, 8, 8) + 0.5
    valid = torch.ones_like(truth, dtype=torch.bool)
    assert depth_scores(truth * torch.tensor([2.0, 0.1, 7.0]).view(3, 1, 1, 1), truth, valid).abs_rel < 1e-6
    predicted = truth.clone()
    predicted[..., :2] *= 1.5  # a quarter of the pixels, so the median ratio stays 1
    scores = depth_scores(predicted, truth, valid)
    assert scores.abs_rel == pytest.approx(0.125, abs=1e-5)
    assert scores.delta_125 == pytest.approx(75, abs=1e-3)
    valid[..., :2] = False
    assert depth_scores(predicted, truth, valid).abs_rel < 1e-6


def test_scores_kept_over_batches_are_those_of_all_at_once() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = render_scenes(scene_seeds("free", range(5)), 3, (16, 16), supersample=1)
    depth = truth.depth * (1 + 0.5 * torch.rand(truth.depth.shape, generator=generator))
    poses = turned(truth.extrinsic, view=1, degrees=7.5)
    keeper = ScoreKeeper()
    for part in (slice(0, 2), slice(2, 5)):
        batch = render_scenes(scene_seeds("free", range(5)[part]), 3, (16, 16), supersample=1)
        keeper.add(poses[part], depth[part, ..., None], batch.extrinsic, batch.depth, batch.valid)
    scores = keeper.scores()
    pose, depth_of_all = (
        pose_scores(*pose_errors(poses, truth.extrinsic)),
        depth_scores(depth, truth.depth, truth.valid),
    )
    assert scores == pytest.approx({**vars(pose), **vars(depth_of_all)}, rel=1e-4)
    without_cameras = ScoreKeeper()
    without_cameras.add(None, depth, truth.extrinsic, truth.depth, truth.valid)
    assert set(without_cameras.scores()) == {"abs_rel", "delta_125"}


def test_bad_shapes_are_named() -> None:
    with pytest.raises(ValueError, match="at least two views, got 1"):
        pose_errors(torch.eye(3, 4)[None, None], torch.eye(3, 4)[None, None])
    with pytest.raises(ValueError, match=r"cameras \[1, 3, 3, 4\] and truth \[1, 2, 3, 4\] differ"):
        pose_errors(torch.eye(3, 4).expand(1, 3, 3, 4), torch.eye(3, 4).expand(1, 2, 3, 4))
    with pytest.raises(ValueError, match="differ"):
        depth_scores(torch.ones(1, 2, 4, 4), torch.ones(1, 2, 4, 5), torch.ones(1, 2, 4, 4, dtype=torch.bool))


def test_focal_ratios_are_of_pixels_and_not_of_focal_lengths() -> None:
    truth = torch.eye(3).expand(2, 4, 3, 3).clone()
    predicted = 3 * truth
    assert focal_ratios(predicted, truth).tolist() == [[1.0] * 4] * 2
    predicted[0, :, 1, 1] /= 1.1  # fx / fy a tenth too large in half of the views
    predicted[1, 0, 0, 0] *= 1.04
    scores = focal_scores(focal_ratios(predicted, truth))
    assert scores.focal_ratio_105 == 50
    keeper = ScoreKeeper()
    keeper.add(None, None, truth, truth, truth, predicted, truth)
    assert keeper.scores() == dataclasses.asdict(scores)
