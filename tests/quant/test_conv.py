"""INT8 convolutions against float convolutions with the dequantized weights, in every geometry."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from vggt_int8.difference import relative_error
from vggt_int8.quant import Int8Conv2d, Int8ConvTranspose2d

# Sizes as in VGGT's heads, then every option away from its default.
CONVOLUTIONS: list[dict[str, Any]] = [
    {"kernel_size": 1},
    {"kernel_size": 3, "padding": 1, "bias": False},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (3, 1), "stride": (1, 2), "padding": (2, 0), "dilation": (2, 1), "groups": 2},
    {"kernel_size": 3, "groups": 4},
    {"kernel_size": (3, 5), "padding": "same", "dilation": (2, 1)},
    {"kernel_size": 3, "padding": "valid"},
    {"kernel_size": 3, "padding": (1, 2), "stride": 2, "padding_mode": "reflect"},
    {"kernel_size": (4, 3), "padding": "same", "padding_mode": "circular"},
    {"kernel_size": 3, "padding": "valid", "padding_mode": "replicate"},
]
TRANSPOSED: list[dict[str, Any]] = [
    {"kernel_size": 4, "stride": 4},
    {"kernel_size": 2, "stride": 2, "bias": False},
    {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
    {"kernel_size": (3, 2), "stride": (3, 2), "output_padding": (1, 0), "groups": 2, "dilation": (2, 1)},
    {"kernel_size": 3, "groups": 4},
]
CASES = [(nn.Conv2d, Int8Conv2d, o) for o in CONVOLUTIONS] + [
    (nn.ConvTranspose2d, Int8ConvTranspose2d, o) for o in TRANSPOSED
]


def convolution(kind: type[nn.Module], options: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    conv = kind(8, 12, **options)
    conv.weight.data[:, 1] *= 20  # channels of different size, on both axes
    conv.weight.data[2] *= 0.05
    return conv


@pytest.mark.parametrize(("kind", "int8_kind", "options"), CASES)
def test_storage_and_codes(kind: Any, int8_kind: Any, options: dict[str, Any]) -> None:
    conv = convolution(kind, options)
    axis = 0 if kind is nn.Conv2d else 1
    conv.weight.data.select(axis, 0).zero_()
    layer = int8_kind.from_conv(conv)
    state = layer.state_dict()
    channels = conv.weight.shape[axis]
    scale_shape = (channels, 1, 1, 1) if axis == 0 else (1, channels, 1, 1)
    assert (state["weight"].dtype, state["weight"].shape) == (torch.int8, (1, *conv.weight.shape))
    assert layer.codes.data_ptr() == state["weight"].data_ptr()
    assert (state["weight_scale"].dtype, tuple(state["weight_scale"].shape)) == (torch.float32, scale_shape)
    assert set(state) == {"weight", "weight_scale", *(["bias"] if conv.bias is not None else [])}
    if conv.bias is not None:
        assert torch.equal(state["bias"], conv.bias.half())
    others = tuple(a for a in range(4) if a != axis)
    absmax = conv.weight.detach().abs().amax(others, keepdim=True)
    assert torch.equal(state["weight_scale"], torch.where(absmax == 0, 1, absmax / 127))
    assert state["weight"].min() >= -127
    codes = (conv.weight.detach() / state["weight_scale"]).round().clamp(-127, 127)
    assert torch.equal(layer.codes.float(), codes)
    error = (layer.codes.float() * state["weight_scale"] - conv.weight).abs()
    assert (error <= state["weight_scale"] * (0.5 + 1e-4)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("kind", "int8_kind", "options"), CASES)
def test_result(kind: Any, int8_kind: Any, options: dict[str, Any], dtype: torch.dtype) -> None:
    conv = convolution(kind, options)
    layer = int8_kind.from_conv(conv).to(dtype)
    x = torch.randn(2, 8, 13, 11, generator=torch.Generator().manual_seed(1)).to(dtype)
    dequantized = copy.deepcopy(conv)
    dequantized.weight.data = layer.codes.float() * layer.weight_scale
    if conv.bias is not None:
        dequantized.bias.data = layer.bias.float()
    want = dequantized(x.float())
    y = layer(x)
    assert (y.dtype, y.shape) == (dtype, want.shape)
    limit = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    assert relative_error(y, want) <= limit
    assert (y.float() - want).abs().max() <= 2 * limit * want.abs().max()
    assert relative_error(conv(x.float()), want) <= 0.015


@pytest.mark.parametrize(("kind", "int8_kind"), [(nn.Conv2d, Int8Conv2d), (nn.ConvTranspose2d, Int8ConvTranspose2d)])
def test_copies_slices_and_dtypes(kind: Any, int8_kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    conv = convolution(kind, {"kernel_size": 3})
    layer = int8_kind.from_conv(conv)
    monkeypatch.setattr("vggt_int8.quant.storage._ENCODE_ELEMENTS", 200)
    for other in (copy.deepcopy(layer).half(), copy.deepcopy(layer).double(), int8_kind.from_conv(conv)):
        for name, tensor in layer.state_dict().items():
            assert other.state_dict()[name].dtype == tensor.dtype
            assert torch.equal(other.state_dict()[name], tensor)


@pytest.mark.parametrize(("kind", "int8_kind"), [(nn.Conv2d, Int8Conv2d), (nn.ConvTranspose2d, Int8ConvTranspose2d)])
def test_nan(kind: Any, int8_kind: Any) -> None:
    conv = convolution(kind, {"kernel_size": 3, "padding": 1})
    layer = int8_kind.from_conv(conv)
    x = torch.ones(1, 8, 9, 9)
    x[0, 0, 4, 4] = float("nan")
    y = layer(x)
    assert y[0, :, 4, 4].isnan().all()
    assert y[0, :, 0, 0].isfinite().all()
    conv.weight.data[0, 0, 0, 0] = float("inf")
    with pytest.raises(ValueError, match="weight holds NaN or inf"):
        int8_kind.from_conv(conv)
