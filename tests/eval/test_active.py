"""Quantizers that do nothing are refused, and those that are meant to reach one output alone are not."""

import pytest

from vggt_int8 import quantize
from vggt_int8.eval.active import check_active, int8_layer_names
from vggt_int8.model import VGGT


def test_a_quantizer_that_does_nothing_is_refused(strong_model: VGGT) -> None:
    names = int8_layer_names(quantize(VGGT(strong_model.config), "int8_dynamic", "reference"))
    with pytest.raises(RuntimeError, match=r"int8_dynamic: outputs are exactly those of fp32 \(depth\)"):
        check_active("int8_dynamic", names, {"depth": 0.0, "pose_enc": 1e-3})
    check_active("int8_dynamic", names, {"depth": 1e-4, "pose_enc": 1e-3})


def test_one_head_alone_changes_its_output_alone() -> None:
    camera = ["camera_head.embed_pose"]
    check_active("camera", camera, {"depth": 0.0, "pose_enc": 1e-3})
    with pytest.raises(RuntimeError, match="camera: outputs are exactly"):
        check_active("camera", camera, {"depth": 0.0, "pose_enc": 0.0})


def test_a_plain_model_may_be_the_same(model: VGGT) -> None:
    assert int8_layer_names(model) == []
    check_active("fp32", [], {"depth": 0.0})
