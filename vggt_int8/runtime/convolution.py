"""Convolutions of the dense heads: channels last, weights decoded once per call, bias and ReLU inside the kernel.

Codes become floats at the start of a call and are dropped at its end: 66 MB for a head of VGGT-1B in fp16, written in
about 0.1 ms by a kernel that also makes them channels last. Caching them would hold that memory permanently and go
stale when weights change. On a CPU, codes are not decoded where `kernels/cpu/conv.py` can multiply integers.
"""

from typing import NamedTuple, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggt_int8.kernels import ops
from vggt_int8.kernels.cpu import compiled
from vggt_int8.kernels.cpu.conv import int8_conv2d, int8_conv_is_there
from vggt_int8.quant.conv import Int8Conv2d, Int8ConvTranspose2d
from vggt_int8.quant.storage import Int8Storage

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d, Int8Conv2d, Int8ConvTranspose2d)
# dtypes in which cuDNN fuses convolution, sum, bias and ReLU; for others they are separate passes.
FUSED_DTYPES = (torch.float16,)


class FloatConv(NamedTuple):
    """A convolution's weight and bias in the compute dtype, channels last, with its geometry."""

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    transposed: bool

    def __call__(self, x: Tensor) -> Tensor:
        """[f, C, h, w] -> [f, N, h', w'], both channels last."""
        if self.transposed:
            return F.conv_transpose2d(x, self.weight, self.bias, self.stride, self.padding)
        if self.weight.shape[2:] == (1, 1):  # a linear layer over pixels: one GEMM with the bias in its epilogue
            return pixels_to_map(F.linear(map_to_pixels(x), self.weight.flatten(1), self.bias))
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)

    def relu(self, x: Tensor) -> Tensor:
        """`relu(conv(x))`."""
        if x.is_cuda and x.dtype in FUSED_DTYPES:
            return torch.cudnn_convolution_relu(x, self.weight, self.bias, self.stride, self.padding, (1, 1), 1)
        return self(x).relu_()

    def add(self, x: Tensor, z: Tensor) -> Tensor:
        """`conv(x) + z`; may overwrite z."""
        return self(x).add_(z)

    def add_relu(self, x: Tensor, z: Tensor) -> Tensor:
        """`relu(conv(x) + z)`; may overwrite z."""
        if x.is_cuda and x.dtype in FUSED_DTYPES:
            geometry = (self.stride, self.padding, (1, 1), 1)
            return torch.cudnn_convolution_add_relu(x, self.weight, z, 1.0, self.bias, *geometry)
        return self(x).add_(z).relu_()


class IntegerConv(NamedTuple):
    """A convolution on a CPU that multiplies its stored codes: weight int8 [N, C, kh, kw], weight_scale fp32 [N, 1, 1,
    1].
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None
    stride: tuple[int, int]
    padding: tuple[int, int]

    def __call__(self, x: Tensor) -> Tensor:
        """[f, C, h, w] -> [f, N, h', w'], both channels last."""
        return int8_conv2d(x, *self)

    def relu(self, x: Tensor) -> Tensor:
        """`relu(conv(x))`."""
        return int8_conv2d(x, *self, relu=True)

    def add(self, x: Tensor, z: Tensor) -> Tensor:
        """`conv(x) + z`; may overwrite z."""
        return int8_conv2d(x, *self, addend=z)

    def add_relu(self, x: Tensor, z: Tensor) -> Tensor:
        """`relu(conv(x) + z)`; may overwrite z."""
        return int8_conv2d(x, *self, addend=z, relu=True)


def call_conv(layer: nn.Module, dtype: torch.dtype) -> FloatConv | IntegerConv:
    """The layer as a callable for the duration of one call."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if _in_integers(layer, dtype, weight.device.type):
        _check(layer)
        return IntegerConv(layer.codes, layer.weight_scale, layer.bias, _pair(layer.stride), _pair(layer.padding))
    return float_conv(layer, dtype)


def kernel(layer: Int8Conv2d | Int8ConvTranspose2d, dtype: torch.dtype, device_type: str) -> str:
    """Description of the kernel that `call_conv` uses for the layer on "cpu" or "cuda"."""
    library = compiled.library() if _in_integers(layer, dtype, device_type) else None
    return layer.kernel(device_type) if library is None else f"conv2d of int8 and 16-bit integers, {library.name}"


def _in_integers(layer: nn.Module, dtype: torch.dtype, device_type: str) -> TypeGuard[Int8Conv2d]:
    on_cpu = device_type == "cpu" and dtype == torch.float32
    return isinstance(layer, Int8Conv2d) and on_cpu and int8_conv_is_there()


def float_conv(layer: nn.Module, dtype: torch.dtype) -> FloatConv:
    """The layer with its weight as floats. A weight that already has this dtype and layout is not copied."""
    _check(layer)
    assert isinstance(layer, CONVOLUTIONS)
    bias = None if layer.bias is None else layer.bias.to(dtype)
    if isinstance(layer, Int8Storage):
        codes = layer.codes
        weight = ops.dequantize(codes.flatten(2), layer.weight_scale.flatten(2), dtype)
        weight = pixels_to_map(weight.unflatten(1, codes.shape[2:]))
    else:
        weight = layer.weight.to(dtype).contiguous(memory_format=torch.channels_last)
    transposed = isinstance(layer, nn.ConvTranspose2d | Int8ConvTranspose2d)
    return FloatConv(weight, bias, _pair(layer.stride), _pair(layer.padding), transposed)


def _check(layer: nn.Module) -> None:
    assert isinstance(layer, CONVOLUTIONS)
    plain = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    if not plain or any(d != 1 for d in layer.dilation) or layer.groups != 1 or any(layer.output_padding):
        raise ValueError(f"{layer} has dilation, groups or a padding mode that fused heads do not support")


def _pair(sizes: object) -> tuple[int, int]:
    assert isinstance(sizes, tuple)
    return (int(sizes[0]), int(sizes[1]))


def map_to_pixels(x: Tensor) -> Tensor:
    """[f, C, h, w] channels last -> [f, h, w, C], a view."""
    return x.permute(0, 2, 3, 1)


def pixels_to_map(x: Tensor) -> Tensor:
    """[f, h, w, C] -> [f, C, h, w] channels last, a view."""
    return x.permute(0, 3, 1, 2)
