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

from vggt_int8.kernels.cpu import FLOAT32, cached_per_weight, cpu_int8_kernel, row_slices

_LARGEST = 256 * 127 + 127  # of 256 * high + low
_SMALLEST_SCALE = 2.0**-126  # of fp32, at full precision; also the scale of zeros
_U8_OFFSET = 128  # bytes go in unsigned
_VALUES_AT_ONCE = 1 << 19  # that become bytes: 2 MB each of floats and integers, which a second-level cache holds


def int8_conv2d(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    addend: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """`conv2d(x, weight * weight_scale, bias) (+ addend) (-> relu)` for x [f, C, h, w] fp32 -> [f, N, h', w'] fp32.

    weight [N, C, kh, kw] int8, weight_scale [N, 1, 1, 1] fp32, bias [N] float. The result is channels last, as the
    addend must be, which may be overwritten. Only where `int8_conv_is_exact()`.
    """
    absmax = max(x.amax().item(), -x.amin().item())  # the largest of both is NaN if there is one
    bias = None if bias is None else bias.float()
    if not math.isfinite(absmax):  # which integers cannot carry
        y = F.conv2d(x, weight.float() * weight_scale, bias, stride, padding)
        y = y if addend is None else addend.add_(y)
        return y.relu_() if relu else y
    scale = max(absmax / _LARGEST, _SMALLEST_SCALE)
    high, low = _bytes(x, scale)
    packed, scales = _packed(weight, weight_scale, stride, padding), weight_scale.flatten()
    y = _product(high, 256 * scale, packed, scales, bias, stride, padding, addend)
    return _product(low, scale, packed, scales, None, stride, padding, y, relu)


def _bytes(x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """x [f, C, h, w] = scale * (256 * high + low), rounded: both uint8, channels last and `_U8_OFFSET` too large.

    Some values at a time, so that only x and the bytes leave the cache.
    """
    pixels = x.permute(0, 2, 3, 1)
    high, low = torch.empty(2, *pixels.shape, dtype=torch.uint8)
    values, high_values, low_values = pixels.flatten(), high.view(-1), low.view(-1)
    floats = torch.empty(min(len(values), _VALUES_AT_ONCE))
    integers = torch.empty(len(floats), dtype=torch.int32)
    # The offset of both bytes makes all codes positive, so that cutting off their fractions rounds them down.
    offset = torch.tensor(257 * _U8_OFFSET + 0.5)
    for part in row_slices(len(values), _VALUES_AT_ONCE):
        count = part.stop - part.start
        codes = integers[:count].copy_(torch.add(offset, values[part], alpha=1 / scale, out=floats[:count]))
        low_values[part] = codes
        high_values[part] = codes.bitwise_right_shift_(8)
    return high.permute(0, 3, 1, 2), low.permute(0, 3, 1, 2)


@functools.cache
def int8_conv_is_exact() -> bool:
    """Whether this CPU and this build of PyTorch have the integer convolution, and its sums do not saturate."""
    if cpu_int8_kernel() == FLOAT32:
        return False
    with torch.device("cpu"):
        generator = torch.Generator().manual_seed(0)
        x = torch.randint(-32639, 32640, (2, 40, 7, 9), generator=generator)
        weight = torch.randint(-127, 128, (24, 40, 3, 3), generator=generator)
        x[0], weight[0], weight[1] = 32639, 127, -127
        want = F.conv2d(x.double(), weight.double(), None, 1, 1)
        operands = (x.float(), weight.to(torch.int8), torch.ones(24, 1, 1, 1), None, (1, 1), (1, 1))
        addend = torch.zeros(want.shape).contiguous(memory_format=torch.channels_last)
        try:  # both operators: one product alone, and one added to a map
            results = [int8_conv2d(*operands), int8_conv2d(*operands, addend=addend)]
        except (AttributeError, RuntimeError):  # this build of torch has no such operator
            return False
        return all(bool(((got - want).abs() <= 1e-6 * want.abs().amax()).all()) for got in results)


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
    addend: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """codes [f, C, h, w] uint8 -> `scale * weight_scale * convolution + bias` in fp32, in `addend` if there is one."""
    zeros = torch.zeros(len(weight_scale), dtype=torch.int32)
    operands = (codes, scale, _U8_OFFSET, packed, weight_scale, zeros)
    geometry = (list(stride), list(padding), [1, 1], 1)
    result = (1.0, 0, torch.float32)
    conv = torch.ops.onednn.qconv2d_pointwise
    y: Tensor
    if addend is None:
        y = conv(*operands, bias, *geometry, *result, "none", [], "")
    else:
        y = conv.binary(*operands, addend, bias, *geometry, *result, 1.0, 0, "sum", 1.0, "none", [], "")
    return y.relu_() if relu else y  # oneDNN's own ReLU would make zeros of NaN
