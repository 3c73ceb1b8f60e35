"""The hard variant: the same function to the last bit, and much harder to quantize."""

import copy
import statistics
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from vggt_int8.difference import relative_error
from vggt_int8.eval.outliers import with_outliers
from vggt_int8.kernels.reference import scale_from_absmax
from vggt_int8.model import VGGT
from vggt_int8.quant import Int8Linear


def linear_inputs(model: VGGT, images: Tensor) -> dict[str, Tensor]:
    """What every linear that the transform touches reads."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            seen.setdefault(name, args[0])

        return hook

    hooks = [
        module.register_forward_hook(keep(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.endswith(("attn.qkv", "attn.proj", "mlp.fc1"))
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return seen


def test_the_function_keeps_every_bit(model: VGGT) -> None:
    images = torch.rand(1, 3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    before = {name: p.clone() for name, p in model.named_parameters()}
    hard = with_outliers(model, seed=3)
    with torch.no_grad():
        expected, actual = model(images), hard(images)
    for name in ("pose_enc", "depth", "depth_conf", "world_points", "world_points_conf"):
        assert torch.equal(expected[name], actual[name]), name
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters()), "the original was changed"


def test_about_one_channel_in_seventy_sticks_out_everywhere(model: VGGT) -> None:
    images = torch.rand(1, 2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    plain = linear_inputs(model, images)
    hard = linear_inputs(with_outliers(model, seed=3), images)
    assert len(plain) == 3 * (2 + 2 * 2 + 1)
    for name, x in plain.items():
        ratio = hard[name].flatten(0, -2).abs().amax(0) / x.flatten(0, -2).abs().amax(0)
        raised = ratio > 1
        assert raised.sum() == max(1, round(0.015 * x.shape[-1])), name
        assert set(ratio[raised].tolist()) <= {16.0, 32.0}, name


def test_plain_rounding_falls_and_one_scale_per_tensor_falls_most(model: VGGT) -> None:
    """Mean relative error of the touched linears, INT8 against fp32, with the reference arithmetic."""
    images = torch.rand(1, 2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    error = {}
    for kind, network in (("plain", model), ("hard", with_outliers(model, seed=3))):
        linears = dict(network.named_modules())
        for activations in ("dynamic", "static", "none"):
            errors = []
            for name, x in linear_inputs(network, images).items():
                linear = linears[name]
                scale = scale_from_absmax(x.abs().amax()) if activations == "static" else None
                quantized = Int8Linear.from_linear(linear, activations, input_scale=scale)
                with torch.no_grad():
                    expected = linear(x)
                    errors.append(relative_error(quantized(x), expected))
            error[kind, activations] = statistics.mean(errors)
    assert error["hard", "static"] > 5 * error["plain", "static"]
    assert error["hard", "dynamic"] > 3 * error["plain", "dynamic"]
    assert error["hard", "static"] > 1.05 * error["hard", "dynamic"]
    # Weights lose as well: columns shrink below what their row's scale resolves.
    assert error["hard", "none"] > 2 * error["plain", "none"]
    assert error["hard", "none"] < error["hard", "dynamic"] / 2


def test_the_seed_decides(model: VGGT) -> None:
    first, again, other = (with_outliers(model, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: with_outliers(m, 0, factors=(10.0,)), r"powers of two.*\(10.0,\)"),
        (lambda m: with_outliers(m, 0, share=0.0), "share must be in"),
        (lambda m: with_outliers(nn.Linear(4, 4), 0), "Linear has no transformer blocks"),
        (lambda m: with_outliers(nn.Sequential(m).half(), 0), "float16"),
    ],
)
def test_bad_requests_are_named(model: VGGT, call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(copy.deepcopy(model))
