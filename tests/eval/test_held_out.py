"""Several models on the same scenes: scores are those of one batch, distances those of the outputs."""

import copy

import pytest
import torch

from vggt_int8 import quantize
from vggt_int8.difference import relative_error
from vggt_int8.eval.held_out import score_models
from vggt_int8.eval.metrics import depth_scores, focal_ratios, focal_scores, pose_errors, pose_scores
from vggt_int8.model import VGGT
from vggt_int8.scenes import render_scenes, scene_seeds


@pytest.mark.slow
def test_scores_are_those_of_all_scenes_at_once(model: VGGT) -> None:
    quantized = quantize(copy.deepcopy(model), "int8_dynamic", "reference")
    seen: list[tuple[int, int]] = []
    results = score_models(
        {"fp32": model, "int8": quantized},
        scenes=5,
        views=3,
        size=(32, 32),
        frames_per_batch=6,
        on_batch=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(2, 5), (4, 5), (5, 5)]
    truth = render_scenes(scene_seeds("held_out", range(5)), 3, (32, 32))
    with torch.no_grad():
        expected = {"fp32": model(truth.images), "int8": quantized(truth.images)}
    for name, output in expected.items():
        pose = pose_scores(*pose_errors(output.extrinsic, truth.extrinsic))
        depth = depth_scores(output.depth[..., 0], truth.depth, truth.valid)
        focal = focal_scores(focal_ratios(output.intrinsic, truth.intrinsic))
        relative, scenes = results[name].pop("relative"), results[name].pop("scenes")
        for index in range(5):  # each scene by itself
            alone = pose_scores(*pose_errors(output.extrinsic[[index]], truth.extrinsic[[index]]))
            assert scenes["auc_5"][index] == pytest.approx(alone.auc_5, abs=1e-3)
            part = (output.depth[[index], ..., 0], truth.depth[[index]], truth.valid[[index]])
            assert scenes["abs_rel"][index] == pytest.approx(depth_scores(*part).abs_rel, rel=2e-3)
        # Untrained: some fields of view are zero, so focal lengths are infinite and their ratio is no number.
        scores = {**vars(pose), **vars(depth), **vars(focal)}
        assert results[name] == pytest.approx(scores, rel=2e-3, nan_ok=True)
        for key in ("pose_enc", "depth", "world_points"):
            apart = relative_error(output[key], expected["fp32"][key])
            assert relative[key] == pytest.approx(apart, rel=0.05)
            assert (relative[key] == 0) is (name == "fp32")


def test_heads_that_a_model_lacks_have_no_scores(model: VGGT) -> None:
    only_depth = VGGT(type(model.config)(**{**model.config.to_dict(), "enable_camera": False, "enable_point": False}))
    scores = score_models({"only": only_depth.eval()}, scenes=2, views=2, size=(32, 32))["only"]
    assert set(scores) == {"abs_rel", "delta_125", "relative", "scenes"}
    assert set(scores["scenes"]) == {"abs_rel"}
    assert set(scores["relative"]) == {"depth"}
