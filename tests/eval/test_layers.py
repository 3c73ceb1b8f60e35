"""SQNR of single layers: each against its own float layer, on the floating-point model's inputs."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from vggt_int8 import load_recipe, quantize
from vggt_int8.eval.metrics import layer_sqnr
from vggt_int8.eval.outliers import with_outliers
from vggt_int8.model import VGGT
from vggt_int8.quant import Int8Linear, make_plan
from vggt_int8.quant.layer import int8_layers
from vggt_int8.quant.seams import find_seams
from vggt_int8.quant.smoothing import estimated_folds, parameters_of


class Two(nn.Module):
    """Two linears in a row, the second called twice."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.second(self.first(x)))


def test_an_error_stays_with_its_layer() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(16, 16, bias=False), nn.Linear(16, 16)
    plain = Two(first, second)
    quantized = Two(Int8Linear.from_linear(first), Int8Linear.from_linear(second))
    batches = [torch.randn(5, 16), torch.randn(3, 16)]
    found = layer_sqnr(plain, quantized, batches)
    with torch.no_grad():
        inputs = [first(x) for x in batches] + [second(first(x)) for x in batches]
        want = torch.cat([second(x) for x in inputs])
        got = torch.cat([quantized.second(x) for x in inputs])
    assert found["second"] == pytest.approx(
        10 * math.log10(want.square().sum() / (got - want).square().sum()), rel=1e-4
    )
    quantized.first.weight_scale.data *= 2  # ruins the first: the second does not see it
    again = layer_sqnr(plain, quantized, batches)
    assert again["second"] == found["second"]
    assert again["first"] == pytest.approx(0, abs=0.2)  # twice the output: noise as strong as the signal


def test_every_layer_of_a_network(model: VGGT) -> None:
    images = torch.rand(1, 2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    quantized = quantize(copy.deepcopy(model), "int8_dynamic", "reference")
    found = layer_sqnr(model, quantized, [images])
    assert set(found) == {name for name, _ in int8_layers(quantized)}
    assert all(20 < value < 80 for value in found.values()), found
    assert not any(module._forward_hooks for module in model.modules()), "a hook was left behind"


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["int8_rotated", "int8_weight_only"])
def test_smoothed_layers_see_the_inputs_that_they_get(model: VGGT, recipe: str) -> None:
    """By the factors themselves, which the metric has to find: inputs divided, value rows multiplied."""
    hard = with_outliers(model, 3, share=0.1)
    images = torch.rand(1, 2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    smoothed = replace(load_recipe(recipe), smoothing="weights")
    quantized = quantize(copy.deepcopy(hard), smoothed, "reference")
    found = layer_sqnr(hard, quantized, [images])
    folds = estimated_folds(find_seams(hard, make_plan(hard, smoothed)), parameters_of(hard))
    assert len(folds) > 8
    inputs: dict[str, torch.Tensor] = {}
    hooks = [
        hard.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0]}))
        for name in folds
    ]
    with torch.no_grad():
        hard(images)
    for hook in hooks:
        hook.remove()
    for name, fold in folds.items():
        if name not in found or name.startswith("camera_head"):  # called several times
            continue
        x, rows = inputs[name], fold.rows
        with torch.no_grad():
            y = quantized.get_submodule(name)(x if fold.columns is None else x / fold.columns.float())
            y = y if rows is None else y / rows.float()
            want = hard.get_submodule(name)(x)
        by_hand = 10 * math.log10(want.square().sum() / (y - want).square().sum())
        assert found[name] == pytest.approx(by_hand, abs=0.3), name
    rough = layer_sqnr(hard, quantize(copy.deepcopy(hard), replace(smoothed, smoothing=0), "reference"), [images])
    assert min(found.values()) > min(rough.values()) + 3


def test_what_cannot_be_compared_is_named() -> None:
    plain = Two(nn.Linear(4, 4), nn.Linear(4, 4))
    with pytest.raises(ValueError, match="Two has no INT8 layer"):
        layer_sqnr(plain, plain, [])
    quantized = Two(nn.Linear(4, 4), Int8Linear.from_linear(nn.Linear(4, 4)))
    with pytest.raises(ValueError, match=r"1 INT8 layers were never called.* second"):
        layer_sqnr(plain, quantized, [])
    with pytest.raises(ValueError, match="'second' is INT8 here"):
        layer_sqnr(nn.Linear(4, 4), quantized, [])
