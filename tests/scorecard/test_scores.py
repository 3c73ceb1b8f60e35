"""Scores of one scene: perfect for the truth, and in the units that are promised for what is known to be off."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vggt_int8.eval.metrics import depth_errors, pose_errors, pose_scores
from vggt_int8.geometry import camera_to_pose_encoding
from vggt_int8.scorecard.data import RenderedScenes, TrueScene
from vggt_int8.scorecard.scores import Protocol, differences, score_scene
from vggt_int8.scorecard.tables import FROM_FIRST, METRICS

SIZE = (24, 32)


@pytest.fixture(scope="module")
def truth() -> TrueScene:
    return next(iter(RenderedScenes(1, 4, SIZE, "free")))


def perfect(truth: TrueScene, scale: float = 1.0) -> dict[str, Tensor]:
    """What a network would say that knows the truth, in a unit of its own."""
    assert truth.extrinsic is not None
    assert truth.intrinsic is not None
    assert truth.depth is not None
    extrinsic = truth.extrinsic.clone()
    extrinsic[..., 3] *= scale
    pose = camera_to_pose_encoding(extrinsic, truth.intrinsic, SIZE)
    return {"pose_enc": pose, "depth": scale * truth.depth[..., None]}


def test_the_truth_scores_perfectly_in_any_unit(truth: TrueScene) -> None:
    found = score_scene(perfect(truth, 3.0), truth, Protocol())
    of_scans = {name for name in METRICS if name.startswith("scan_")}  # tests/datasets/test_eth3d.py has scans
    assert set(found) == set(METRICS) - of_scans, "every metric has a title and a unit"
    perfect_scores = {
        **dict.fromkeys(("auc_30", "auc_3", "rra_5", "rta_5", "delta_125", "f_score"), 100),
        **dict.fromkeys(("ate", "abs_rel", "rmse", "accuracy", "completeness", "abs_rel_scale_shift"), 0),
        "focal_ratio": 1,
        "normal_consistency": 1,
        "abs_rel_none": 2,
        "delta_125_none": 0,
    }
    for name, value in perfect_scores.items():
        assert found[name] == pytest.approx(value, abs=0.05), name


def test_lengths_are_in_per_cent_of_the_scene(truth: TrueScene) -> None:
    """The same scene in metres and in hundreds of metres has the same scores."""
    assert truth.extrinsic is not None
    assert truth.depth is not None
    predicted = perfect(truth)
    predicted["depth"] = predicted["depth"] * (1 + 0.1 * torch.rand(predicted["depth"].shape))
    larger = truth.extrinsic.clone()
    larger[..., 3] *= 100
    metres = TrueScene("", truth.images, larger, truth.intrinsic, 100 * truth.depth, truth.valid)
    one, other = (score_scene(predicted, scene, Protocol()) for scene in (truth, metres))
    for name in ("ate", "rmse", "accuracy", "completeness", "f_score"):
        assert other[name] == pytest.approx(one[name], rel=1e-3, abs=1e-3), name
    assert one["accuracy"] > 0.1


def test_scores_are_those_of_the_metrics(truth: TrueScene) -> None:
    assert truth.extrinsic is not None
    assert truth.depth is not None
    assert truth.valid is not None
    predicted = perfect(truth)
    predicted["pose_enc"] = predicted["pose_enc"] + 0.03 * torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    predicted["depth"] = predicted["depth"] * (1 + torch.rand(predicted["depth"].shape))
    found = score_scene(predicted, truth, Protocol())
    from vggt_int8.geometry import pose_encoding_to_camera

    extrinsic, _ = pose_encoding_to_camera(predicted["pose_enc"], SIZE)
    poses = pose_scores(*pose_errors(extrinsic[None], truth.extrinsic[None]))
    assert (found["auc_5"], found["rra_15"]) == (poses.auc_5, poses.rra_15)
    errors = depth_errors(predicted["depth"][None, ..., 0], truth.depth[None], truth.valid[None], "none")
    assert found["abs_rel_none"] == pytest.approx(errors.abs_rel.item())


def test_what_is_not_known_is_not_scored(truth: TrueScene) -> None:
    images_alone = TrueScene("", truth.images)
    assert score_scene(perfect(truth), images_alone, Protocol()) == {}
    cameras_alone = TrueScene("", truth.images, truth.extrinsic, truth.intrinsic)
    found = score_scene(perfect(truth), cameras_alone, Protocol())
    assert "ate" in found
    assert not {"abs_rel", "accuracy"} & set(found)
    assert "auc_5" not in score_scene({"depth": perfect(truth)["depth"]}, truth, Protocol())


def test_no_points_are_no_clouds(truth: TrueScene) -> None:
    found, whole = (score_scene(perfect(truth), truth, Protocol(points=points)) for points in (0, 100))
    assert set(whole) - set(found) == {"accuracy", "completeness", "f_score", "normal_consistency"}
    assert all(whole[name] == value for name, value in found.items())


def test_what_is_unknown_between_known_pixels_is_no_surface(truth: TrueScene) -> None:
    """Depth that is known in one half alone, 0 elsewhere as in stored scenes: normals stay perfect up to its edge."""
    assert truth.depth is not None
    assert truth.valid is not None
    known = truth.valid.clone()
    known[..., ::2, : SIZE[1] // 2] = False
    sparse = TrueScene("", truth.images, truth.extrinsic, truth.intrinsic, torch.where(known, truth.depth, 0), known)
    found = score_scene(perfect(truth), sparse, Protocol())
    assert found["normal_consistency"] == pytest.approx(1, abs=1e-3)
    assert found["accuracy"] == pytest.approx(0, abs=1e-3)


def test_closest_points_do_not_make_it_worse(truth: TrueScene) -> None:
    predicted = perfect(truth)
    noise = torch.randn(predicted["depth"].shape, generator=torch.Generator().manual_seed(0))
    predicted["depth"] = predicted["depth"] * (1 + 0.05 * noise)
    plain, refined = (score_scene(predicted, truth, Protocol(points=1000, icp=icp)) for icp in (False, True))
    assert refined["accuracy"] <= plain["accuracy"] * (1 + 1e-6)


def test_differences_from_another_model(truth: TrueScene) -> None:
    reference = perfect(truth)
    other: dict[str, Any] = {"pose_enc": reference["pose_enc"], "depth": 1.02 * reference["depth"]}
    found = differences(other, reference, SIZE)
    assert set(found) <= set(FROM_FIRST)
    assert found["depth_percent_from_first"] == pytest.approx(2, abs=1e-3)
    assert found["rotation_degrees_from_first"] == 0
