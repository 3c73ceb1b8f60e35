"""Weights rounded by calibration inputs: the codes are those of the inputs that a layer really gets."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vggt_int8 import Recipe, RecipeError, VGGTInt8, load_recipe, quantize
from vggt_int8.calibration import inputs_for, rounding
from vggt_int8.calibration.rounding import Gram
from vggt_int8.kernels.reference import rotate
from vggt_int8.quant import Int8Linear
from vggt_int8.quant.gptq import round_by_inputs
from vggt_int8.quant.plan import make_plan, recipe_for
from vggt_int8.quant.quantize import apply_plan, plan_folds

pytestmark = pytest.mark.filterwarnings("ignore:calibrated with 6 images")
ROUNDED = replace(load_recipe("int8_rotated"), rounding="gptq")


@pytest.fixture(scope="module")
def rounded(tiny_checkpoint: Path, scenes: Tensor) -> VGGTInt8:
    """Read only."""
    return quantize(VGGTInt8.from_pretrained(tiny_checkpoint), ROUNDED, calibration=scenes)


def linears(model: nn.Module) -> dict[str, Int8Linear]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, Int8Linear)}


def seen_inputs(model: VGGTInt8, scenes: Tensor, names: list[str]) -> dict[str, list[Tensor]]:
    """What goes into some layers, scene by scene."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0]))
        for name in names
    ]
    with torch.no_grad():
        for scene in inputs_for(model, scenes, 32):  # their frames in the order of calibration
            model(scene)
    for hook in hooks:
        hook.remove()
    return seen


def test_codes_are_those_of_the_inputs_that_are_seen(make_tiny: Callable[[], VGGTInt8], scenes: Tensor) -> None:
    """Rotated, of every scene, and for a layer that is called more than once in a call all of them."""
    recipe = replace(ROUNDED, smoothing=0)
    model, plain = quantize(make_tiny(), recipe, calibration=scenes), make_tiny()
    names = ["aggregator.frame_blocks.0.attn.qkv", "aggregator.global_blocks.0.mlp.fc2", "camera_head.trunk.0.mlp.fc1"]
    for name, inputs in seen_inputs(plain, scenes, names).items():
        layer, weight = model.get_submodule(name), plain.get_submodule(name).weight.detach()
        group = layer.rotation
        assert group > 1
        x = rotate(torch.cat([rows.flatten(0, -2) for rows in inputs]), group).double()
        want = round_by_inputs(rotate(weight, group), layer.weight_scale, x.t() @ x)
        assert (layer.codes != want).float().mean() < 1e-3, name  # another order of sums, at the border of two codes
        nearest = Int8Linear.from_linear(plain.get_submodule(name), rotation=group)
        assert torch.equal(layer.weight_scale, nearest.weight_scale)
        assert (layer.codes != nearest.codes).any()

        lost, before = (
            float(((codes * layer.weight_scale - rotate(weight, group)).double() @ x.t()).square().sum())
            for codes in (layer.codes, nearest.codes)
        )
        assert lost < 0.9 * before, name


def test_what_is_folded_is_seen(make_tiny: Callable[[], VGGTInt8], rounded: VGGTInt8, scenes: Tensor) -> None:
    """Under smoothing inputs are divided, and columns multiplied, before anything is rounded."""
    name = "aggregator.frame_blocks.0.mlp.fc1"
    plain = make_tiny()
    factor = plan_folds(plain, make_plan(plain, ROUNDED), recipe_for(plain, ROUNDED))[name].columns.float()
    assert factor.std() > 0
    layer = rounded.get_submodule(name)
    (inputs,) = seen_inputs(plain, scenes, [name]).values()
    x = rotate(torch.cat([rows.flatten(0, -2) for rows in inputs]) / factor, layer.rotation).double()
    weight = rotate(plain.get_submodule(name).weight.detach() * factor, layer.rotation)
    want = round_by_inputs(weight, layer.weight_scale, x.t() @ x)
    assert (layer.codes != want).float().mean() < 1e-3


@pytest.mark.slow
def test_passes_in_parts_give_the_same_codes(
    make_tiny: Callable[[], VGGTInt8], rounded: VGGTInt8, scenes: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(rounding, "AT_ONCE", 8 * 64**2 * 8)
    parts = quantize(make_tiny(), ROUNDED, calibration=scenes, on_call=lambda *done: calls.append(done))
    assert calls[-1][0] == calls[-1][1] > len(scenes)
    layers = linears(parts)
    for name, layer in linears(rounded).items():
        assert torch.equal(layer.codes, layers[name].codes), name


def test_what_images_do_not_reach_is_rounded_to_the_nearest(
    make_tiny: Callable[..., VGGTInt8], rounded: VGGTInt8
) -> None:
    layers, nearest = linears(rounded), linears(quantize(make_tiny(), "int8_rotated"))
    track = [name for name in layers if name.startswith("track_head.")]
    assert track
    for name in track:
        assert torch.equal(layers[name].codes, nearest[name].codes), name


@pytest.mark.slow
def test_a_checkpoint_of_it_comes_back(bare_checkpoint: Path, tmp_path: Path, scenes: Tensor) -> None:
    model = VGGTInt8.from_pretrained(bare_checkpoint, recipe=ROUNDED, calibration=scenes)
    model.save_pretrained(tmp_path / "rounded")
    config = json.loads((tmp_path / "rounded" / "config.json").read_text())["quantization_config"]
    assert config["recipe"]["rounding"] == "gptq"
    assert config["calibration"]["images"] == 6
    again = VGGTInt8.from_pretrained(tmp_path / "rounded")
    loaded = again.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded[name], tensor), name


def test_any_module(scenes: Tensor) -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 8)).eval()
    exact, x = model[2].weight.detach().clone(), torch.randn(40, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden = model[:2](x).double()
    quantize(model, Recipe(rounding="gptq"), calibration=[x[:20], x[20:]])
    nearest = (exact / model[2].weight_scale).round()
    assert (model[2].codes - nearest).abs().max() >= 1

    def loss(codes: Tensor) -> float:
        return float(((codes * model[2].weight_scale - exact).double() @ hidden.t()).square().sum())

    assert loss(model[2].codes) < loss(nearest)


def test_it_is_refused_without_images_or_layers(make_tiny: Callable[[], VGGTInt8], scenes: Tensor) -> None:
    model = make_tiny()
    with pytest.raises(RecipeError, match="pass calibration="):
        quantize(model, ROUNDED)
    with pytest.raises(RecipeError, match="rounds weights by the inputs of their layers"):
        apply_plan(model, make_plan(model, ROUNDED), ROUNDED)
    with pytest.raises(RecipeError, match="rounding 'gptq' has no effect: no layer is INT8"):
        Recipe(weights="keep", rounding="gptq")
    with pytest.raises(RecipeError, match="rounding is 'best'; choose one of 'nearest', 'gptq'"):
        Recipe(rounding="best")
    assert not linears(model)
    assert "rounding" not in load_recipe("int8_rotated").to_dict()


def test_codes_of_another_shape_are_refused() -> None:
    layer = Int8Linear.from_linear(nn.Linear(4, 3))
    for codes in (torch.zeros(4, 3), torch.zeros(3, 4), torch.full((3, 4), -128)):
        dtype = torch.int8 if codes.shape == (4, 3) or codes.min() < 0 else torch.float32
        with pytest.raises(ValueError, match=r"codes must be int8 \[3, 4\] of at least -127"):
            layer.replace_codes(codes.to(dtype))


def test_order_and_parts_of_inputs_do_not_matter() -> None:
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
    parts = Gram()
    for part in x.flip(0).split(7):
        parts.add(part)
    torch.testing.assert_close(parts.matrix, x.double().t() @ x.double(), rtol=1e-12, atol=1e-12)
    assert (parts.rows, parts.range()) == (50, x.abs().max().item())
