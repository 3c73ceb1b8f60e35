"""The model that ships reconstructs scenes it has never seen, and INT8 leaves its geometry as it is."""

import pytest
import torch

from vggt_int8 import VGGTInt8
from vggt_int8.cli.demo import embedded_model
from vggt_int8.scenes import pose_errors, render_scenes, scene_seeds
from vggt_int8.training.config import DataConfig, ValidationConfig
from vggt_int8.training.validation import validate

# Of eight held-out scenes of four views, and well inside what 128 scenes gave (AUC@30 88 %, AbsRel 0.025).
LEAST_AUC_30, MOST_ABS_REL = 75.0, 0.045


def scores(model: VGGTInt8) -> dict[str, float]:
    return validate(model, DataConfig(), ValidationConfig(views=(4,)), scenes=8)["4 views"]


@pytest.fixture(scope="module")
def fp32() -> VGGTInt8:
    return VGGTInt8.from_pretrained(embedded_model()).eval()


@pytest.fixture(scope="module")
def int8() -> VGGTInt8:
    return VGGTInt8.from_pretrained(embedded_model(), recipe="int8_dynamic", backend="native").eval()


def test_held_out_scenes_are_reconstructed(fp32: VGGTInt8) -> None:
    found = scores(fp32)
    assert found["auc_30"] > LEAST_AUC_30
    assert found["abs_rel"] < MOST_ABS_REL


def test_int8_costs_little(fp32: VGGTInt8, int8: VGGTInt8) -> None:
    plain, quantized = scores(fp32), scores(int8)
    assert plain != quantized, "INT8 is not active"
    assert quantized["auc_30"] > plain["auc_30"] - 2
    assert quantized["abs_rel"] < plain["abs_rel"] + 0.003


def test_cameras_follow_the_scene_and_not_a_habit(fp32: VGGTInt8) -> None:
    """Cameras of one scene are far from those of another, so a constant answer would not pass."""
    batch = render_scenes(scene_seeds("held_out", range(200, 208)), 4)
    with torch.inference_mode():
        predicted = fp32(batch.images).extrinsic
    right, _ = pose_errors(predicted, batch.extrinsic)
    wrong, _ = pose_errors(predicted.roll(1, 0), batch.extrinsic)
    assert right.median() < wrong.median() / 2
