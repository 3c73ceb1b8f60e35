"""Layers in training compute what their INT8 layers will, code by code; their gradients are those of rounding taken as
the identity, by an independent computation."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.quant.numbers import hadamard, randn
from vggt_int8 import VGGTInt8, quantize
from vggt_int8.difference import relative_error
from vggt_int8.kernels import ops, reference
from vggt_int8.model import VGGT
from vggt_int8.pretrained.quantizer import round_kept_parameters
from vggt_int8.quant import Int8Linear
from vggt_int8.quant.fake import (
    FakeInt8Linear,
    fake_layers,
    fake_quantize,
    restore,
    scale_of_rows,
    weight_codes,
    weight_for_codes,
)
from vggt_int8.quant.gptq import round_by_inputs
from vggt_int8.quant.plan import make_plan
from vggt_int8.quant.storage import encode
from vggt_int8.recipe import Recipe, RecipeError, Scheme, load_recipe

DYNAMIC, ROTATED = Scheme("dynamic"), Scheme("dynamic", rotation=256)
STATIC, STATIC_ROTATED = Scheme("static"), Scheme("static", rotation=256)
OWN = Scheme("static", special_tokens=3)
OUTLIERS = Scheme("dynamic", 3.0)
CPU_AND_GPU = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SCHEMES = [DYNAMIC, ROTATED, STATIC, STATIC_ROTATED, OWN, OUTLIERS]
K, N = 96, 40


def linear(bias: bool = True) -> nn.Linear:
    layer = nn.Linear(K, N, bias)
    layer.weight.data = randn(N, K, seed=1) * 0.1
    layer.weight.data[3] = 0
    if bias:
        layer.bias.data = randn(N, seed=2)
    return layer


def inputs() -> Tensor:
    x = randn(2, 11, K, seed=3)
    x[..., 1] *= 20
    x[0, 4] = 0
    return x


def fake(scheme: Scheme, bias: bool = True) -> FakeInt8Linear:
    scale = torch.tensor([0.05, 0.08][: scheme.input_scales])
    return FakeInt8Linear.of(linear(bias), scheme, scale if len(scale) else None)


def trained(layer: FakeInt8Linear) -> FakeInt8Linear:
    """After steps that change every parameter."""
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2)
    for step in range(3):
        (layer(inputs()) - randn(2, 11, N, seed=step)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return layer


def int8_of(layer: FakeInt8Linear) -> Int8Linear:
    model = nn.Sequential(layer)
    restore(model)
    assert type(model[0]) is nn.Linear
    return Int8Linear.of(model[0], layer.scheme, "reference", layer.input_scale)


@pytest.mark.parametrize("device", CPU_AND_GPU)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_codes_are_those_of_the_int8_layer_bit_by_bit(scheme: Scheme, bias: bool, device: str) -> None:
    layer, x = trained(fake(scheme, bias)).to(device), inputs().to(device)
    assert not torch.equal(layer.weight.cpu(), linear().weight)
    y = layer(x)
    saved = y.grad_fn.next_functions[0][0].saved_tensors
    int8 = int8_of(layer)
    assert torch.equal(saved[2], int8.codes)
    assert torch.equal(saved[3], int8.weight_scale)
    if scheme.outlier_threshold:
        assert relative_error(int8(x), y) < 1e-6
        return
    rows, way = x.view(-1, K), (int8.row_scales(11, 22), int8.rotation)
    # On a GPU the definition's last bit of a rotated row may be another.
    for codes, scale in [ops.quantize_rows(rows, *way)] + [reference.quantize_rows(rows, *way)] * (device == "cpu"):
        assert torch.equal(saved[0], codes)
        assert torch.equal(saved[1], scale)
    assert len(saved[0].unique()) > 50
    assert torch.equal(int8.ask(("native", ""))(x), y)
    # K * 127^2 < 2^24: sums are exact in fp32, so the results are equal as well, but for a GPU's fused additions.
    assert relative_error(int8.ask(("reference", ""))(x), y) <= (0 if device == "cpu" else 1e-4)


@pytest.mark.parametrize("layer", [nn.Linear(6, 5), nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(3, 5, 2)], ids=str)
def test_weight_only_layers_multiply_with_what_is_stored(layer: nn.Module) -> None:
    axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
    model = nn.Sequential(layer)
    weight = layer.weight
    fake_quantize(model, make_plan(model, Recipe(activations="none", weights="int8")))
    codes, scale = encode(weight.detach(), axis)
    assert torch.equal(model[0].weight, codes * scale)
    x = randn(2, 3, 6, 6)
    model(x).square().sum().backward()
    assert weight.grad.abs().sum() > 0
    assert restore(model) == {}
    assert model[0].weight is weight
    assert type(model[0]) is type(layer)


def straight_through(x: Tensor, rounded: Tensor) -> Tensor:
    return x + (rounded - x).detach()


def by_definition(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, scheme: Scheme) -> Tensor:
    """In fp64 by autograd, from operations whose derivatives PyTorch knows; rounding is the identity."""
    group = scheme.rotation_of(K)
    if group:
        turn = torch.block_diag(*[hadamard(group)] * (K // group))
        x, weight = x @ turn, weight @ turn
    of_weight = weight.detach().abs().amax(1, keepdim=True) / 127
    of_weight[of_weight == 0] = 1
    weight = straight_through(weight, (weight / of_weight).round() * of_weight)
    outlier = (x.detach().abs() >= (scheme.outlier_threshold or math.inf)).flatten(0, -2).any(0)
    if scale is None:
        of_x = x.detach().masked_fill(outlier, 0).abs().amax(-1, keepdim=True) / 127
        of_x[of_x == 0] = 1
        rounded = straight_through(x, (x / of_x).round() * of_x)
        x = torch.where(outlier, x, rounded)
    else:
        scale = scale if len(scale) == 1 else torch.cat([scale[:1].expand(3), scale[1:].expand(8)]).view(11, 1)
        ratio = x / scale
        x = straight_through(ratio, ratio.round()).clamp(-127, 127) * scale
    return F.linear(x, weight, straight_through(bias, bias.half().double()))


@pytest.mark.parametrize("device", CPU_AND_GPU)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_gradients_take_rounding_for_the_identity(scheme: Scheme, device: str) -> None:
    layer, x, wanted = fake(scheme).to(device), inputs().to(device).requires_grad_(), randn(2, 11, N, seed=9)
    y = layer(x)
    y.backward(wanted.to(device))
    exact = [t.detach().cpu().double().requires_grad_() for t in (x, layer.weight, layer.bias)]
    scale = None if layer.input_scale is None else layer.input_scale.cpu().double().requires_grad_()
    expected = by_definition(*exact, scale, scheme)
    assert relative_error(y.cpu(), expected.float()) < 1e-5
    expected.backward(wanted.double())
    for got, ours in zip((x, layer.weight, layer.bias), exact, strict=True):
        assert relative_error(got.grad.cpu(), ours.grad.float()) < 1e-5
    if scale is not None:
        assert (x.grad == 0).any() or scheme.rotation, "an input is beyond the range"
        # What rounding added is kept in half precision. d/d(log s) = s d/ds.
        assert relative_error(layer.log_input_scale.grad.cpu(), (scale.grad * scale).float()) < 1e-2


def test_special_tokens_have_a_scale_of_their_own() -> None:
    x = inputs()
    layer = FakeInt8Linear.of(linear(), OWN, torch.tensor([0.01, 0.2]))
    rows = scale_of_rows(layer.input_scale, x.shape, 3)
    expected = torch.where(torch.arange(11) < 3, layer.input_scale[0], layer.input_scale[1]).repeat(2)
    assert torch.equal(rows.view(-1), expected)
    y = layer(x)
    for part, scale in ((slice(0, 3), 0), (slice(3, 11), 1)):
        alone = FakeInt8Linear.of(linear(), STATIC, layer.input_scale[scale].view(1))
        assert relative_error(y[:, part], alone(x[:, part])) < 1e-6
    y.square().mean().backward()
    assert (layer.log_input_scale.grad != 0).all()
    assert torch.equal(int8_of(layer)(x), y)


def test_nothing_that_is_not_finite_becomes_a_number() -> None:
    for scheme in (DYNAMIC, STATIC_ROTATED):
        x = inputs()
        x[1, 2, 5] = float("nan")
        y = fake(scheme)(x)
        assert y[1, 2].isnan().all()
        assert y[0].isfinite().all()
        layer = fake(scheme)
        layer.weight.data[7, 0] = float("inf")
        assert not layer(inputs())[..., 7].isfinite().any()


def test_under_autocast_codes_are_of_what_comes_in() -> None:
    layer, x = fake(ROTATED), inputs()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, layer(x).bfloat16())
    y.sum().backward()
    assert layer.weight.grad.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("name", ["int8_dynamic", "int8_rotated", "llm_int8"])
def test_a_network_computes_what_its_checkpoint_will(name: str, make_tiny: Callable[..., VGGTInt8]) -> None:
    """The aggregator's tokens are equal; heads have weight-only layers, whose products round in another order."""
    recipe = replace(load_recipe(name), smoothing=0)  # which changes the floats that are trained, before they are
    images = torch.rand(1, 2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    model = make_tiny()
    round_kept_parameters(model)
    names = set(model.state_dict())
    layers = range(model.config.depth)
    fake_quantize(model, make_plan(model, recipe))
    assert len(list(fake_layers(model))) >= 4
    with torch.no_grad():
        tokens, output = model.aggregator(images, layers), VGGT.forward(model, images)
    assert restore(model) == {}
    assert set(model.state_dict()) == names
    quantize(model, recipe, "reference")
    expected = model.aggregator(images, layers)
    assert all(torch.equal(tokens[layer], expected[layer]) for layer in layers)
    for key, value in model(images).items():
        if key in ("pose_enc", "depth", "world_points"):
            assert relative_error(output[key], value) < 1e-4


def test_what_cannot_be_trained_for_is_refused() -> None:
    model = nn.Sequential(linear(), linear())
    static = make_plan(model, Recipe(activations="static"))
    with pytest.raises(RecipeError, match="1 has no static scale, nor have 0 others"):
        fake_quantize(model, static, {"0": torch.ones(1)})
    with pytest.raises(RecipeError, match="quantizes no layer"):
        fake_quantize(model, make_plan(model, Recipe(weights="keep")))
    assert all(type(layer) is nn.Linear for layer in model)
    for scheme, scale in ((STATIC, None), (DYNAMIC, torch.ones(1)), (OWN, torch.ones(1))):
        with pytest.raises(ValueError, match=f"{scheme.label} has {scheme.input_scales} of them"):
            FakeInt8Linear.of(linear(), scheme, scale)


@pytest.mark.slow
def test_torchaos_fake_quantization_has_other_codes() -> None:
    """Why this package has its own: the day one of these fails, it can go."""
    qat = pytest.importorskip("torchao.quantization.qat")
    weight = randn(N, K)
    per_channel = qat.IntxFakeQuantizer(qat.IntxFakeQuantizeConfig(torch.int8, "per_channel", is_symmetric=True))
    rounded = per_channel(weight)
    codes, scale = encode(weight, 0)
    assert relative_error(per_channel.scale.view(-1, 1), scale * 127 / 127.5) < 1e-6
    assert not torch.equal((rounded / per_channel.scale.view(-1, 1)).round(), codes.float())
    per_token = qat.IntxFakeQuantizer(qat.IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=True))
    with pytest.raises(NotImplementedError, match="Symmetric per token is not supported"):
        per_token(weight)


@pytest.mark.parametrize("rotation", [0, 32])
def test_a_weight_begins_where_it_becomes_given_codes(rotation: int) -> None:
    """Codes that calibration inputs choose, of a weight that stays as close to the floats as they let it."""
    weight, inputs = randn(N, K), randn(500, K, seed=1) @ randn(K, K, seed=2)
    weight[3] = 0
    rows = reference.rotate(weight, rotation) if rotation else weight
    scale = encode(weight, 0, rotation)[1]
    gram = (reference.rotate(inputs, rotation) if rotation else inputs).double()
    codes = round_by_inputs(rows, scale, gram.t() @ gram)
    found = weight_for_codes(weight, codes, rotation)
    again, scale_again = weight_codes(found, rotation=rotation)
    assert torch.equal(again, codes)
    assert torch.allclose(scale_again, scale, rtol=1e-5)
    moved = ((reference.rotate(found, rotation) if rotation else found) - rows).abs() / scale
    nearest = encode(weight, 0, rotation)[0]
    assert (codes != nearest).float().mean() > 0.1
    assert moved[codes == nearest].max() < 0.06, "half a step less 0.45 of one"
    assert moved.max() < (codes.int() - nearest.int()).abs().max() + 0.06
