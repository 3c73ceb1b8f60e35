"""`Int8Linear`: its stored tensors, and its result against float."""

import copy
import io
import pickle
import re

import pytest
import torch
from torch import nn

from vggt_int8.difference import relative_error
from vggt_int8.kernels import reference
from vggt_int8.quant import Int8Linear
from vggt_int8.quant.backends import get_backend
from vggt_int8.recipe import Scheme


def linear(k: int, n: int, bias: bool = True, seed: int = 0) -> nn.Linear:
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(k, n, bias=bias)
    layer.weight.data = torch.randn(n, k, generator=generator) * 0.1
    if bias:
        layer.bias.data = torch.randn(n, generator=generator)
    return layer


def static_layer() -> Int8Linear:
    return Int8Linear.from_linear(linear(64, 24), "static", input_scale=0.031)


def test_storage_is_the_plain_format() -> None:
    state = static_layer().state_dict()
    described = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}
    assert described == {
        "weight": (torch.int8, (1, 24, 64)),
        "weight_scale": (torch.float32, (24, 1)),
        "bias": (torch.float16, (24,)),
        "input_scale": (torch.float32, (1,)),
    }
    dynamic = Int8Linear.from_linear(linear(64, 24, bias=False)).state_dict()
    assert set(dynamic) == {"weight", "weight_scale"}
    assert not any(p.requires_grad for p in static_layer().parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_codes_and_scales_by_definition(dtype: torch.dtype) -> None:
    source = linear(37, 9).to(dtype)
    source.weight.data[3] = 0
    source.weight.data[4] = -source.weight.data[4].abs()
    source.weight.data[5, 7] = -1e4
    layer = Int8Linear.from_linear(source)
    weight = source.weight.detach().float()
    scale = weight.abs().amax(1, keepdim=True) / 127
    scale[3] = 1
    assert torch.equal(layer.weight_scale, scale)
    assert torch.equal(layer.codes.float(), (weight / scale).round().clamp(-127, 127))
    assert layer.codes.min() == -127
    assert not layer.codes[3].any()
    error = (layer.codes.float() * layer.weight_scale - weight).abs()
    assert (error <= scale * (0.5 + 1e-4)).all()


def test_halves_are_rounded_to_even() -> None:
    source = linear(255, 3)
    source.weight.data[:] = torch.arange(-127, 128) * 0.5 + torch.tensor([[0.0], [2.0**-22], [-(2.0**-22)]])
    source.weight.data[:, 0] = -127  # so the scale is 1
    layer = Int8Linear.from_linear(source)
    assert torch.equal(layer.codes.float(), source.weight.detach().round())


def test_a_large_weight_is_encoded_in_slices_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    source = linear(130, 77)
    whole = Int8Linear.from_linear(source)
    monkeypatch.setattr("vggt_int8.quant.storage.PIECE", 1000)
    sliced = Int8Linear.from_linear(source)
    assert torch.equal(whole.weight, sliced.weight)
    assert torch.equal(whole.weight_scale, sliced.weight_scale)


def test_the_source_is_not_changed() -> None:
    source = linear(16, 8)
    before = copy.deepcopy(source.state_dict())
    layer = Int8Linear.from_linear(source.eval())
    assert not layer.training
    layer.codes.zero_()
    for name, tensor in source.state_dict().items():
        assert torch.equal(tensor, before[name])


def same(a: Int8Linear, b: Int8Linear) -> None:
    assert a.state_dict().keys() == b.state_dict().keys()
    for name, tensor in a.state_dict().items():
        assert tensor.dtype == b.state_dict()[name].dtype, name
        assert torch.equal(tensor, b.state_dict()[name]), name
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(a(x), b(x))
    assert (a.scheme, a.backend) == (b.scheme, b.backend)


@pytest.mark.parametrize("change", ["half", "bfloat16", "double", "float", "to", "type", "cpu"])
def test_dtypes_stay(change: str) -> None:
    layer = nn.Sequential(static_layer(), nn.LayerNorm(24))
    if change == "to":
        layer.to(torch.bfloat16)
    elif change == "type":
        layer.type(torch.float16)
    else:
        getattr(layer, change)()
    same(layer[0], static_layer())
    assert isinstance(layer[0].weight, nn.Parameter)


def test_copies_are_equal() -> None:
    layer = static_layer()
    same(copy.deepcopy(layer), layer)
    same(pickle.loads(pickle.dumps(layer)), layer)
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    empty = Int8Linear(64, 24, scheme=layer.scheme, backend="reference")
    empty.load_state_dict(torch.load(buffer, weights_only=True))
    same(empty, layer)
    meta = Int8Linear(64, 24, scheme=layer.scheme, backend="reference", device="meta")
    assert all(p.is_meta for p in meta.parameters())
    meta.load_state_dict(layer.state_dict(), assign=True)
    same(meta, layer)


@pytest.mark.parametrize("backend", ["native", "torchao", "bitsandbytes"])
def test_new_weights_in_the_same_place_are_used(backend: str) -> None:
    """Backends may keep what they derive from a weight, but not longer than the weight."""
    if (reason := get_backend(backend).unsupported(Scheme("dynamic"), "cpu")) is not None:
        pytest.skip(reason)
    x = torch.randn(7, 64, generator=torch.Generator().manual_seed(2))
    layer = Int8Linear.from_linear(linear(64, 24), backend=backend)
    other = Int8Linear.from_linear(linear(64, 24, seed=5), backend=backend)
    want = other(x)
    assert not torch.equal(layer(x), want)
    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer(x), want)
    layer = Int8Linear.from_linear(linear(64, 24), backend=backend)
    layer(x)
    for name in ("weight", "weight_scale", "bias"):
        getattr(layer, name).data = getattr(other, name).data.clone()
    assert torch.equal(layer(x), want)
    with torch.inference_mode():
        layer = Int8Linear.from_linear(linear(64, 24), backend=backend)
        layer(x)
        layer.load_state_dict(other.state_dict())
        assert torch.equal(layer(x), want)


@pytest.mark.parametrize("activations", ["none", "dynamic", "static"])
def test_leading_dimensions_and_empty_inputs(activations: str) -> None:
    scale = 0.04 if activations == "static" else None
    layer = Int8Linear.from_linear(linear(64, 24), activations, backend="auto", input_scale=scale)
    x = torch.randn(2, 3, 5, 64, generator=torch.Generator().manual_seed(3))
    y = layer(x)
    assert y.shape == (2, 3, 5, 24)
    torch.testing.assert_close(y.view(30, 24), layer(x.view(30, 64)), rtol=0, atol=0)
    torch.testing.assert_close(layer(x.transpose(0, 2)), y.transpose(0, 2), rtol=1e-6, atol=1e-6)
    assert layer(x[0, 0, 0]).shape == (24,)
    for empty in (torch.zeros(0, 64), torch.zeros(2, 0, 64, dtype=torch.float16)):
        assert layer(empty).shape == (*empty.shape[:-1], 24)
        assert layer(empty).dtype == empty.dtype


@pytest.mark.parametrize(("activations", "bound"), [("none", 0.008), ("dynamic", 0.014), ("static", 0.02)])
def test_close_to_float(activations: str, bound: float) -> None:
    source = linear(1024, 256)
    x = torch.randn(64, 1024, generator=torch.Generator().manual_seed(4))
    scale = (x.abs().max() / 127).item() if activations == "static" else None
    layer = Int8Linear.from_linear(source, activations, input_scale=scale)
    want = source(x)
    error = relative_error(layer(x), want)
    assert 1e-4 < error < bound
    assert (layer(x) - want).abs().max() < 0.05 * want.abs().max()


def test_outlier_columns_stay_in_floating_point() -> None:
    source = linear(512, 64)
    x = torch.randn(32, 512, generator=torch.Generator().manual_seed(4)).clamp(-3, 3)
    x[:, 7], x[5, 9] = 200, -80
    plain = Int8Linear.from_linear(source)
    with_outliers = Int8Linear.from_linear(source, outlier_threshold=6.0)
    assert with_outliers.scheme.label == "LLM.int8()"
    dequantized = x @ (with_outliers.codes.float() * with_outliers.weight_scale).t() + source.bias
    assert relative_error(with_outliers(x), dequantized) < 0.002 < 0.05 < relative_error(plain(x), dequantized)
    everything = torch.full((3, 512), 7.0)
    assert relative_error(with_outliers(everything), source(everything)) < 0.02


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("activations", "backend", "threshold"),
    [("none", "native", 0), ("none", "reference", 0), ("dynamic", "native", 0), ("dynamic", "bitsandbytes", 200.0)],
)
def test_autocast_reaches_only_the_input(activations: str, backend: str, threshold: float, dtype: torch.dtype) -> None:
    """Autocast would round sums that are fp32 by design, and in fp16 overflow them."""
    layer = Int8Linear.from_linear(linear(4096, 16), activations, backend, outlier_threshold=threshold)
    x = torch.randn(8, 4096, generator=torch.Generator().manual_seed(6)) * 100
    with torch.autocast("cpu", dtype):
        y = layer(x)
    assert y.dtype == dtype
    assert torch.equal(y, layer(x.to(dtype)))


def test_static_needs_an_input_scale_and_others_have_none() -> None:
    for activations, scale in (("static", None), ("dynamic", 0.1), ("none", 0.1)):
        with pytest.raises(ValueError, match="static needs one, others none"):
            Int8Linear.from_linear(linear(8, 8), activations, input_scale=scale)
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"input_scale is .*positive"):
            Int8Linear.from_linear(linear(8, 8), "static", input_scale=scale)
    with pytest.raises(ValueError, match="activations is 'sometimes'"):
        Int8Linear.from_linear(linear(8, 8), "sometimes")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_have_no_codes(value: float) -> None:
    source = linear(16, 8)
    source.weight.data[2, 3] = value
    with pytest.raises(ValueError, match="weight holds NaN or inf"):
        Int8Linear.from_linear(source)
    source = linear(16, 8)
    source.bias.data[2] = value
    with pytest.raises(ValueError, match="bias holds NaN or inf"):
        Int8Linear.from_linear(source)


def test_a_bias_beyond_fp16() -> None:
    source = linear(16, 8)
    source.bias.data[2] = -70000
    with pytest.raises(ValueError, match="bias holds 70000, which fp16"):
        Int8Linear.from_linear(source)


def test_the_definition_itself() -> None:
    """Two rows by hand: the arithmetic that everything else is tested against."""
    weight = torch.tensor([[127, -127], [64, 0]], dtype=torch.int8)
    scale = torch.tensor([[0.5], [2.0]])
    x = torch.tensor([[1.27, -0.635], [0.0, 0.0]])  # scale 0.01: codes 127, -63.5 -> -64 (half to even)
    y = reference.w8a8_linear(x, weight, scale, torch.tensor([1.0, -1.0]))
    want = torch.tensor([[127 * 127 + 127 * 64, 64 * 127], [0, 0]]) * 0.01 * scale.t() + torch.tensor([1.0, -1.0])
    torch.testing.assert_close(y, want, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(4, 4), (16,), (3, 9), ()])
def test_another_number_of_inputs_is_named(shape: tuple[int, ...]) -> None:
    layer = Int8Linear.from_linear(nn.Linear(8, 8))
    with pytest.raises(ValueError, match=rf"x {re.escape(str(list(shape)))} must end in 8, the inputs of Int8Linear"):
        layer(torch.rand(shape))
