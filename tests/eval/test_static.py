"""Static scales are the largest inputs over 127, and outliers hurt them more than dynamic ones."""

import copy

import pytest
import torch
from torch import Tensor

from vggt_int8 import RecipeError, compare_model_outputs, quantize
from vggt_int8.eval.outliers import with_outliers
from vggt_int8.eval.static import input_absmax, quantize_static
from vggt_int8.model import VGGT
from vggt_int8.quant import Int8Linear
from vggt_int8.scenes import render_scenes, scene_seeds


def batches(count: int) -> list[Tensor]:
    return [render_scenes(scene_seeds("calibration", [i]), 3, (32, 32), supersample=1).images for i in range(count)]


def test_scales_come_from_the_largest_input_of_all_batches(model: VGGT) -> None:
    seen: list[Tensor] = []
    name = "aggregator.frame_blocks.1.mlp.fc1"
    hook = model.get_submodule(name).register_forward_hook(lambda module, args, output: seen.append(args[0]))
    with torch.no_grad():
        for batch in batches(3):
            model(batch)
    hook.remove()
    expected = max(x.abs().max().item() for x in seen)
    assert input_absmax(model, [name], batches(3))[name].item() == expected
    assert not model.get_submodule(name)._forward_pre_hooks, "a hook was left behind"
    static = quantize_static(copy.deepcopy(model), batches(3))
    layer = static.get_submodule(name)
    assert isinstance(layer, Int8Linear)
    assert layer.scheme.activations == "static"
    assert layer.input_scale is not None
    assert layer.input_scale.item() == pytest.approx(expected / 127)
    schemes = {n: m.scheme.activations for n, m in static.named_modules() if isinstance(m, Int8Linear)}
    assert {s for n, s in schemes.items() if n.startswith("aggregator")} == {"static"}
    assert {s for n, s in schemes.items() if n.startswith("camera_head")} == {"none"}


def test_layers_that_were_never_reached_are_named(model: VGGT) -> None:
    with pytest.raises(ValueError, match=r"1 layers were never called.*camera_head.embed_pose"):
        input_absmax(model, ["camera_head.embed_pose"], [])
    with pytest.raises(RecipeError, match="quantized already"):
        quantize_static(quantize(copy.deepcopy(model), "int8_dynamic"), batches(1))


def test_outliers_hurt_static_most_and_weight_only_least(strong_model: VGGT) -> None:
    """Of the whole network, on other scenes than were calibrated on."""
    images = render_scenes(scene_seeds("free", range(2)), 3, (32, 32), supersample=1).images
    error: dict[tuple[str, str], float] = {}
    hard_model = with_outliers(strong_model, seed=3)
    assert compare_model_outputs(strong_model, hard_model, images)["max_diff"] == 0
    for kind, plain in (("plain", strong_model), ("hard", hard_model)):
        for name in ("int8_weight_only", "int8_dynamic", "int8_static"):
            network = copy.deepcopy(plain)
            if name == "int8_static":
                quantize_static(network, batches(6))
            else:
                quantize(network, name, "reference")
            result = compare_model_outputs(strong_model, network, images)
            error[kind, name] = result["depth"]["relative"] + result["pose_enc"]["relative"]
    assert error["hard", "int8_static"] > 2 * error["hard", "int8_dynamic"]
    assert error["hard", "int8_dynamic"] > 2 * error["hard", "int8_weight_only"]
    for name in ("int8_dynamic", "int8_static"):
        assert error["hard", name] > 3 * error["plain", name]
