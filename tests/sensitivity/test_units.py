"""Units are the layers that a recipe quantizes, each once; what they may become and take, and that it is undone."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from vggt_int8 import Recipe, VGGTInt8, load_recipe, quantize
from vggt_int8.quant import Int8Linear
from vggt_int8.quant.plan import make_plan
from vggt_int8.quant.quantize import stored_dtype
from vggt_int8.quant.temporary import temporarily_quantized
from vggt_int8.sensitivity.units import (
    UPGRADES,
    StoredChange,
    block_of,
    changes_of,
    find_units,
    other_bytes,
    smooth,
    stored_size,
)

BASE = "int8_rotated"


@pytest.fixture
def model(make_tiny: Callable[[], VGGTInt8]) -> VGGTInt8:
    return make_tiny()


@pytest.mark.parametrize("by", ["group", "block", "layer"])
def test_every_quantized_layer_is_in_one_unit(model: VGGTInt8, by: str) -> None:
    base = load_recipe(BASE)
    units = find_units(model, base, by)
    plan = make_plan(model, base)
    inside = [layer for unit in units for layer in unit.layers]
    assert sorted(inside) == sorted(name for name, layer in plan.items() if layer.scheme)
    assert len({unit.name for unit in units}) == len(units)
    if by == "layer":
        assert [unit.name for unit in units] == inside
    if by == "block":
        assert all(f"{layer}.".startswith(f"{unit.name}.") for unit in units for layer in unit.layers)
    if by == "group":
        names = [unit.name for unit in units]
        assert {"encoder", "frame_blocks", "global_blocks", "camera_head", "depth_convolutions"} <= set(names)


@pytest.mark.parametrize(
    ("layer", "block"),
    [
        ("aggregator.frame_blocks.11.mlp.fc1", "aggregator.frame_blocks.11"),
        ("aggregator.patch_embed.blocks.2.attn.qkv", "aggregator.patch_embed.blocks.2"),
        ("depth_head.scratch.refinenet1.resConfUnit1.conv1", "depth_head.scratch.refinenet1"),
        ("depth_head.scratch.output_conv2.0", "depth_head.scratch.output_conv2.0"),
        ("camera_head.pose_branch.fc1", "camera_head.pose_branch.fc1"),
        ("head", "head"),
    ],
)
def test_blocks_by_name(layer: str, block: str) -> None:
    assert block_of(layer) == block


def test_units_become_more_exact_than_the_recipe_and_never_less(model: VGGTInt8) -> None:
    units = {unit.name: unit for unit in find_units(model, load_recipe(BASE), "group")}
    options = {name: [option.choice for option in unit.options] for name, unit in units.items()}
    assert options["encoder"] == ["base", "weight_only_rotated", "keep"]
    assert options["camera_head"] == ["base", "keep"], "it is weight-only and rotated already"
    assert options["depth_convolutions"] == ["base", "keep"]
    assert units["encoder"].options[0].label == "W8A8 dynamic rotated"
    assert units["encoder"].options[2].label == "fp16"
    plain = replace(load_recipe(BASE), groups={**load_recipe(BASE).groups, "camera_head": "weight_only"})
    every = {unit.name: unit for unit in find_units(model, plain, "group", UPGRADES)}
    assert [option.choice for option in every["encoder"].options] == ["base", *UPGRADES]
    assert [option.label for option in every["camera_head"].options] == ["W8A16", "W8A16 rotated", "fp16"]
    usual = {unit.name: unit for unit in find_units(model, load_recipe("int8_dynamic"), "group")}
    assert [option.choice for option in usual["encoder"].options] == ["base", "weight_only", "keep"]
    (only,) = (unit for unit in find_units(model, load_recipe(BASE), "group", ["keep"]) if unit.name == "encoder")
    assert [option.choice for option in only.options] == ["base", "keep"]


def test_bytes_are_those_of_the_checkpoint(model: VGGTInt8) -> None:
    base = load_recipe(BASE)
    units = find_units(model, base, "block")
    others = other_bytes(model, units)
    kept = others + sum(unit.options[-1].bytes for unit in units)
    assert kept == sum(2 * tensor.numel() for tensor in model.state_dict().values() if tensor.is_floating_point())
    quantize(model, base)
    state = model.state_dict().items()
    whole = sum(tensor.numel() * stored_dtype(name, tensor).itemsize for name, tensor in state)
    assert others + sum(unit.options[0].bytes for unit in units) == whole == stored_size(model)


def test_what_is_not_multiplied_as_integers_costs_more(model: VGGTInt8) -> None:
    units = find_units(model, load_recipe(BASE), "layer")
    (unit,) = (unit for unit in units if unit.name == "aggregator.frame_blocks.0.mlp.fc1")
    weights = model.get_submodule(unit.name).weight.numel()
    integer, weight_only, kept = unit.options
    assert integer.cost == integer.bytes == weight_only.bytes
    assert weight_only.cost == integer.cost + weights
    assert kept.cost == kept.bytes + weights > weight_only.cost


def test_a_change_computes_what_quantizing_these_layers_does_and_is_undone(
    model: VGGTInt8, make_tiny: Callable[[], VGGTInt8], tiny_images: torch.Tensor
) -> None:
    base = load_recipe("int8_dynamic")
    units = find_units(model, base, "block")
    block = "aggregator.global_blocks.0"
    change = next(c for c in changes_of(units, base, "reference") if (c.unit, c.choice) == (block, "base"))
    other = make_tiny()
    quantize(other, Recipe(weights="int8", activations="dynamic", include=[rf"{re.escape(block)}\..*"]), "reference")
    other.set_runtime("off")
    with torch.no_grad():
        before, wanted = model(tiny_images), other(tiny_images)
        modules = list(model.modules())
        with change.made(model):
            assert sum(isinstance(module, Int8Linear) for module in model.modules()) == 4
            found = model(tiny_images)
        assert list(model.modules()) == modules
        after = model(tiny_images)
    assert torch.equal(found.pose_enc, wanted.pose_enc)
    assert torch.equal(found.depth, wanted.depth)
    assert not torch.equal(found.pose_enc, before.pose_enc)
    assert torch.equal(after.pose_enc, before.pose_enc)


@pytest.mark.parametrize("recipe", ["int8_dynamic", "int8_rotated", "int8_weight_only", "smooth"])
def test_the_base_as_a_whole_is_the_quantized_model(
    model: VGGTInt8, make_tiny: Callable[[], VGGTInt8], recipe: str
) -> None:
    base = replace(load_recipe("int8_dynamic"), smoothing="weights") if recipe == "smooth" else load_recipe(recipe)
    other = make_tiny()
    quantize(other, base, "reference")
    wanted = other.state_dict()
    smooth(model, base)
    whole = changes_of(find_units(model, base, "block"), base, "reference")[-1]
    with whole.made(model):
        found = model.state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        if stored_dtype(name, tensor) == torch.float16:  # smoothing rounds what it folds into as it is stored
            assert torch.equal(found[name].half(), tensor.half()), name
        else:
            assert torch.equal(found[name], tensor), name


def test_layers_are_floats_again_whatever_happens(model: VGGTInt8) -> None:
    plan = make_plan(model, load_recipe("int8_dynamic"))
    modules = list(model.modules())
    with (
        pytest.raises(RuntimeError, match="in between"),
        temporarily_quantized(model, plan.values(), load_recipe(BASE)),
    ):
        raise RuntimeError("in between")
    assert list(model.modules()) == modules
    name = "aggregator.global_blocks.0.mlp.fc2"
    with torch.no_grad():
        model.get_submodule(name).weight[0, 0] = torch.nan
    message = rf"^{re.escape(name)}: .*NaN or inf"
    with (
        pytest.raises(ValueError, match=message),
        temporarily_quantized(model, plan.values(), load_recipe("int8_dynamic")),
    ):
        pytest.fail("it was quantized")
    assert list(model.modules()) == modules


def test_storing_rounds_all_floats_and_is_undone(model: VGGTInt8) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with StoredChange().made(model):
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name].half().float()), name
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_cannot_be_measured_is_said(model: VGGTInt8) -> None:
    with pytest.raises(ValueError, match="'fp16' quantizes no layer of this model"):
        find_units(model, load_recipe("fp16"), "group")
    static = Recipe(name="mine", weights="int8", activations="static")
    with pytest.raises(ValueError, match=r"'mine' has W8A8 static layers such as .*, which need calibration"):
        find_units(model, static, "layer")
    for needy in (load_recipe("int8_smooth"), Recipe(name="mine", rounding="gptq")):
        with pytest.raises(ValueError, match=rf"'{needy.name}' smooths or rounds by what calibration images show"):
            find_units(model, needy, "layer")
    with pytest.raises(ValueError, match="no map says which groups a Sequential has: measure by block or by layer"):
        find_units(torch.nn.Sequential(torch.nn.Linear(4, 4)), Recipe(), "group")
