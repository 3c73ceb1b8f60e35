"""Convolutions with INT8 weights on a CPU: two integer convolutions instead of one in fp32.

The weights are integers already. The activations become integers of 16 bits, `x = scale * (256 * high + low)` with one
scale per call and bytes in [-128, 127]. Each byte runs through oneDNN's INT8 convolution, four times as fast as fp32 on
VNNI and exact in its int32 sums, and the two results are added in fp32. Rounding x costs at most 1.6e-5 of its largest
value, what fp16 loses on values down to a sixteenth of it: nothing beside the rounding of the weights (4e-3).
PyTorch reaches these convolutions through the operators that its own quantized models are lowered to.
"""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vggt_int8.kernels.cpu import U8S8, cached_per_weight, cpu_int8_kernel

_LARGEST = 256 * 127 + 127  # of 256 * high + low
_SMALLEST_SCALE = 2.0**-126  # of fp32, at full precision; also the scale of zeros
_U8_OFFSET = 128  # bytes go in unsigned


def int8_conv2d(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Tensor:
    """`conv2d(x, weight * weight_scale, bias)` for x [f, C, h, w] fp32 -> [f, N, h', w'] fp32, channels last.

    weight [N, C, kh, kw] int8, weight_scale [N, 1, 1, 1] fp32, bias [N] float. Only where `int8_conv_is_exact()`.
    """
    absmax = x.abs().amax().item()
    bias = None if bias is None else bias.float()
    if not math.isfinite(absmax):  # which integers cannot carry
        return F.conv2d(x, weight.float() * weight_scale, bias, stride, padding)
    scale = max(absmax / _LARGEST, _SMALLEST_SCALE)
    codes = (x.contiguous(memory_format=torch.channels_last) / scale).round_().to(torch.int16)
    low = codes.to(torch.int8)  # the low byte, as a signed number
    high = codes.add_(_U8_OFFSET).bitwise_right_shift_(8).to(torch.int8)
    packed, scales = _packed(weight, weight_scale, stride, padding), weight_scale.flatten()
    y = _product(high, 256 * scale, packed, scales, bias, stride, padding)
    return y.add_(_product(low, scale, packed, scales, None, stride, padding))


@functools.cache
def int8_conv_is_exact() -> bool:
    """Whether this CPU and this build of PyTorch have the integer convolution, and its sums do not saturate."""
    if cpu_int8_kernel() != U8S8:
        return False
    with torch.device("cpu"):
        generator = torch.Generator().manual_seed(0)
        x = torch.randint(-32639, 32640, (2, 40, 7, 9), generator=generator)
        weight = torch.randint(-127, 128, (24, 40, 3, 3), generator=generator)
        x[0], weight[0], weight[1] = 32639, 127, -127
        want = F.conv2d(x.double(), weight.double(), None, 1, 1)
        try:
            got = int8_conv2d(x.float(), weight.to(torch.int8), torch.ones(24, 1, 1, 1), None, (1, 1), (1, 1))
        except (AttributeError, RuntimeError):  # this build of torch has no such operator
            return False
        return bool(((got - want).abs() <= 1e-6 * want.abs().amax()).all())


@cached_per_weight
def _packed(weight: Tensor, weight_scale: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    """The codes in oneDNN's layout, beside which it keeps what the offset of the bytes adds to each sum."""
    geometry = (list(stride), list(padding), [1, 1], 1)
    packed: Tensor = torch.ops.onednn.qconv_prepack(weight, weight_scale.flatten(), 1.0, _U8_OFFSET, *geometry)
    return packed


def _product(
    codes: Tensor,
    scale: float,
    packed: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Tensor:
    """codes [f, C, h, w] int8 -> `scale * weight_scale * convolution + bias` in fp32."""
    unsigned = codes.view(torch.uint8).bitwise_xor_(_U8_OFFSET)
    zeros = torch.zeros(len(weight_scale), dtype=torch.int32)
    operands = (unsigned, scale, _U8_OFFSET, packed, weight_scale, zeros, bias, list(stride), list(padding), [1, 1], 1)
    y: Tensor = torch.ops.onednn.qconv2d_pointwise(*operands, 1.0, 0, torch.float32, "none", [], "")
    return y
