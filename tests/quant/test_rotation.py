"""Rotated layers: nothing changes in exact arithmetic, on every backend, and outliers cost less."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.quant.numbers import hadamard, randn
from tests.usable import RUNS, running, skip_unless_usable
from vggt_int8 import Recipe, RecipeError, VGGTInt8, load_recipe, quantize
from vggt_int8.difference import relative_error
from vggt_int8.kernels import ops, reference
from vggt_int8.kernels.epilogue import Epilogue
from vggt_int8.quant import Int8Linear
from vggt_int8.quant.storage import encode
from vggt_int8.recipe import Rule, Scheme

CPU_AND_GPU = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
BACKENDS = running("dynamic")
WIDTHS = [2, 6, 24, 96, 192, 588, 1024, 2048]  # 9 and 567 have no group


def by_definition(x: Tensor, group: int) -> Tensor:
    return (x.double().unflatten(-1, (-1, group)) @ hadamard(group)).flatten(-2)


def linear(k: int, n: int, bias: bool) -> nn.Linear:
    layer = nn.Linear(k, n, bias)
    layer.weight.data = randn(n, k, seed=1) * 0.1
    if bias:
        layer.bias.data = randn(n, seed=2)
    return layer


def with_outliers(rows: int, k: int) -> Tensor:
    """One channel is 50 times as large as the others."""
    x = randn(rows, k, seed=3)
    x[:, 1] *= 50
    return x


@pytest.mark.parametrize("k", WIDTHS)
def test_the_definition_is_sylvesters_matrix_and_its_own_inverse(k: int) -> None:
    group = Scheme(rotation=256).rotation_of(k)
    assert group == max(2**i for i in range(9) if k % 2**i == 0)
    x = randn(5, k)
    rotated = reference.rotate(x, group)
    assert relative_error(rotated, by_definition(x, group).float()) < 1e-6
    assert relative_error(reference.rotate(rotated, group), x) < 1e-6


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("k", [*WIDTHS, 9, 567])
def test_a_rotation_is_exact_in_floats(k: int, bias: bool) -> None:
    group, source, x = Scheme(rotation=256).rotation_of(k), linear(k, 7, bias), randn(5, k)
    if group:
        turned = nn.functional.linear(reference.rotate(x, group), reference.rotate(source.weight, group), source.bias)
        assert relative_error(turned, source(x)) < 1e-5
    else:
        layer = Int8Linear.from_linear(source, rotation=256)
        assert torch.equal(layer.codes, Int8Linear.from_linear(source).codes)


def test_codes_by_an_independent_computation() -> None:
    """Weights, and inputs on every way to codes, against a product with the matrix in fp64."""
    source, x = linear(96, 40, True), with_outliers(11, 96)
    layer = Int8Linear.from_linear(source, rotation=256)
    assert layer.rotation == 32
    norm = torch.rand(96, generator=torch.Generator().manual_seed(5)), randn(96, seed=6)
    normed = nn.functional.layer_norm(x.double(), (96,), norm[0].double(), norm[1].double(), 1e-5)
    found = {
        "weight": (by_definition(source.weight.detach(), 32), (layer.codes, layer.weight_scale)),
        "rows": (by_definition(x, 32), ops.quantize_rows(x, None, 32)),
        "LayerNorm": (by_definition(normed, 32), ops.layer_norm_quantize(x, *norm, 1e-5, None, 32)),
    }
    for name, (floats, (codes, scale)) in found.items():
        want = floats.abs().amax(dim=1, keepdim=True) / 127
        torch.testing.assert_close(scale.double(), want, rtol=1e-5, atol=0, msg=name)
        away = (floats / want - codes).abs()  # from the number that a code stands for
        assert away.max() < 0.5 + 1e-3, name


@pytest.mark.parametrize("device", CPU_AND_GPU)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("backend", "activations"), [(backend, kind) for backend in RUNS for kind in sorted(RUNS[backend] - {"llm_int8"})]
)
@pytest.mark.parametrize("k", [96, 1024])
def test_every_backend_computes_the_definition(
    k: int, backend: str, activations: str, dtype: torch.dtype, device: str
) -> None:
    skip_unless_usable(backend, Scheme(activations), device)
    x = with_outliers(37, k).to(device, dtype)
    options = {"input_scale": 0.05 if activations == "static" else None, "rotation": 256}
    source = linear(k, 24, True).to(device)
    layer = Int8Linear.from_linear(source, activations, backend, **options)
    want = Int8Linear.from_linear(source, activations, "reference", **options)(x)
    y = layer(x)
    assert y.dtype == dtype
    # torchao counts 127.5 steps, so its codes are others, as good ones.
    exact = source(x.float())
    assert relative_error(y.float(), exact) < 1.25 * relative_error(want.float(), exact) + torch.finfo(dtype).eps
    if backend != "torchao":  # inputs on the border of two codes may fall to either side
        assert relative_error(y.float(), want.float()) < max(2e-3, torch.finfo(dtype).eps)


@pytest.mark.parametrize("device", CPU_AND_GPU)
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_outlier_channel_costs_less(backend: str, device: str) -> None:
    skip_unless_usable(backend, Scheme(rotation=256), device)
    source, x = linear(256, 40, False).to(device), with_outliers(64, 256).to(device)
    source.weight.data[:, 1] *= 0.02  # which the network was trained to weigh less
    plain, rotated = (
        relative_error(Int8Linear.from_linear(source, "dynamic", backend, rotation=most)(x), source(x))
        for most in (0, 256)
    )
    assert rotated < plain / 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_those_of_the_float_layer(backend: str) -> None:
    skip_unless_usable(backend, Scheme(rotation=256))
    source = linear(96, 24, True)
    layer = Int8Linear.from_linear(source, "dynamic", backend, rotation=256)
    x = randn(5, 96).requires_grad_()
    up = randn(5, 24, seed=4)
    (got,) = torch.autograd.grad(layer(x), x, up)
    assert relative_error(got, up @ source.weight) < 0.01  # the rounding of the weights


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_and_inf_reach_the_result(backend: str, value: float) -> None:
    skip_unless_usable(backend, Scheme(rotation=256))
    layer = Int8Linear.from_linear(linear(96, 9, True), "dynamic", backend, rotation=256)
    x = randn(20, 96)
    x[3, 5] = value
    y = layer(x)
    assert not y[3].isfinite().any()
    assert torch.cat([y[:3], y[4:]]).isfinite().all()


def test_a_large_weight_is_rotated_in_slices_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = randn(77, 96)
    whole = encode(weight, 0, 32)
    monkeypatch.setattr("vggt_int8.quant.storage.PIECE", 1000)
    assert all(torch.equal(a, b) for a, b in zip(encode(weight, 0, 32), whole, strict=True))


@pytest.mark.parametrize("rotation", [-256, 3, 1, 48, 512])
def test_operators_refuse_groups_that_do_not_fit(rotation: int) -> None:
    x = randn(4, 96)
    with pytest.raises(ValueError, match=f"divides the 96 channels, not {rotation}"):
        ops.quantize_rows(x, None, rotation)
    operands = (*reference.quantize_rows(x), *encode(randn(96, 96), 0))
    with pytest.raises(ValueError, match=f"divides the 96 channels, not {rotation}"):
        ops.int8_gemm_quantize(*operands, Epilogue(None, torch.float32, rotation=rotation))
    with pytest.raises(ValueError, match=f"rotation {rotation}: a product that stays floats"):
        ops.int8_gemm(*operands, Epilogue(None, torch.float32, rotation=rotation))


@pytest.mark.parametrize("rotation", [1, 3, 512, -256, 256.0, True, "256"])
def test_recipes_refuse_other_rotations(rotation: object) -> None:
    with pytest.raises(RecipeError, match=r"must be 0 \(off\) or one of 2, 4, 8"):
        Recipe(include=".*", rotation=rotation)  # type: ignore[arg-type]


def test_a_rotation_that_would_do_nothing_or_harm_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"rotation 256 would spread the columns that outlier_threshold 6"):
        replace(load_recipe("llm_int8"), rotation=256)
    with pytest.raises(RecipeError, match=r"rotation 64 has no effect: no layer has INT8 activations, and no group is"):
        Recipe(activations="none", rotation=64)
    with pytest.raises(RecipeError, match=r"groups.camera_head asks for rotated inputs, but rotation is 0"):
        Recipe(groups={"camera_head": "weight_only_rotated"})
    with pytest.raises(RecipeError, match=r"match = 'a' asks for rotated inputs, but rotation is 0"):
        Recipe(rules=(Rule("a", activations="none", rotated=True),))
    with pytest.raises(RecipeError, match=r"rotated is True; .* is for activations = 'none', not for 'dynamic'"):
        Rule("a", activations="dynamic", rotated=True)
    with pytest.raises(RecipeError, match=r"rotated is 1; it must be true or false"):
        Rule("a", activations="none", rotated=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["int8_rotated", "int8_weight_only"])
def test_recipes_rotate_the_camera_head(name: str, make_tiny: Callable[[], VGGTInt8]) -> None:
    """And whatever has INT8 activations."""
    model = quantize(make_tiny(), name)
    rotated = {layer: module.rotation > 0 for layer, module in model.named_modules() if isinstance(module, Int8Linear)}
    odd = {layer for layer in rotated if model.get_submodule(layer).in_features % 2}
    main = name == "int8_rotated"
    wanted = {layer: layer not in odd and (main or layer.startswith("camera_head.")) for layer in rotated}
    assert rotated == wanted
    assert "W8A16 rotated" in {row.scheme for row in model.quantization_report()}


def test_a_rotated_weight_only_rule(make_tiny: Callable[[], VGGTInt8], tiny_images: Tensor) -> None:
    """Every linear's weight is another one, and the network the same but for rounding."""
    rules = (Rule(r".*attn\.\w+|.*mlp\.fc\d", activations="none", rotated=True),)
    recipe = Recipe(activations="none", rotation=256, rules=rules)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    model, plain = make_tiny(), make_tiny()
    quantize(model, recipe, "native")
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, Int8Linear)}
    assert len(layers) >= 16
    for name, layer in layers.items():
        weight = plain.get_submodule(name).weight
        back = layer.codes.double() * layer.weight_scale
        back = by_definition(back, layer.rotation) if layer.rotation else back
        assert relative_error(back, weight.double()) < 0.01, name
    assert relative_error(model(tiny_images).depth, plain(tiny_images).depth) < 0.02


@pytest.mark.slow
def test_a_rotated_checkpoint_comes_back_and_says_what_it_is(
    bare_checkpoint: Path, tmp_path: Path, tiny_images: Tensor
) -> None:
    model = VGGTInt8.from_pretrained(bare_checkpoint, recipe="int8_rotated")
    model.save_pretrained(tmp_path / "rotated")
    config = json.loads((tmp_path / "rotated" / "config.json").read_text())
    recipe = config["quantization_config"]["recipe"]
    assert recipe["rotation"] == 256
    assert [rule["match"].startswith("camera_head") for rule in recipe["rules"] if "rotated" in rule] == [True]
    again = VGGTInt8.from_pretrained(tmp_path / "rotated")
    loaded = again.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded[name], tensor), name
    torch.testing.assert_close(dict(again(tiny_images)), dict(model(tiny_images)), rtol=0, atol=0, equal_nan=True)
    in_place = quantize(VGGTInt8.from_pretrained(bare_checkpoint), "int8_rotated")
    assert all(
        torch.equal(a, b) for a, b in zip(in_place.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_what_is_not_rotated_is_stored_as_before(int8_checkpoint: Path) -> None:
    """Versions that know no rotation refuse the word, and go on to read checkpoints without it."""
    config = json.loads((int8_checkpoint / "config.json").read_text())
    recipe = config["quantization_config"]["recipe"]
    assert "rotation" not in recipe
    assert not any("rotated" in rule for rule in recipe["rules"])
    with pytest.raises(RecipeError, match="unknown"):
        Recipe.from_dict(load_recipe("int8_rotated").to_dict() | {"another": 1})


def test_a_static_scale_in_the_fused_mlp() -> None:
    """fc1 writes the rotated codes there; the plain layer rotates what was rounded, which no code here shows."""
    from vggt_int8.runtime.linear import mlp_residual_

    norm, gamma, x = nn.LayerNorm(64), torch.rand(64), randn(10, 64)
    scale = {"input_scale": 0.05, "rotation": 256}
    fc1 = Int8Linear.from_linear(linear(64, 96, True), "static", "native", **scale)
    fc2 = Int8Linear.from_linear(linear(96, 64, True), "static", "native", **scale)
    with torch.no_grad():
        want = x + gamma * fc2(nn.functional.gelu(fc1(norm(x))))
        mlp_residual_(x, norm, fc1, fc2, gamma)
    assert relative_error(x, want) < 2e-3
