"""Convolutions with INT8 weights on a CPU: two integer convolutions instead of one in fp32.

The weights are integers already. The activations become integers of 16 bits, `x = scale * (256 * high + low)` with one
scale for a few frames and bytes in [-128, 127]. Each byte runs through oneDNN's INT8 convolution, four times as fast as
fp32 on VNNI and exact in its int32 sums, and the two results are added in fp32. Rounding x costs at most 1.6e-5 of its
largest value, what fp16 loses on values down to a sixteenth of it: nothing beside the rounding of the weights (4e-3).
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
_SUMS_AT_ONCE = 1 << 22  # of both bytes in one call: 16 MB. Above, new memory costs more than a second call
_VALUES_AT_ONCE = 1 << 20  # of some frames that become bytes: 4 MB of floats, which stay in the caches


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

    weight [N, C, kh, kw] int8, weight_scale [N, 1, 1, 1] fp32, bias [N] float, addend as the result, which is channels
    last. Only where `int8_conv_is_exact()`.
    """
    bias = None if bias is None else bias.float()
    packed = _packed(weight, weight_scale, stride, padding)
    size = [
        (n + 2 * p - k) // step + 1
        for n, p, k, step in zip(x.shape[2:], padding, weight.shape[2:], stride, strict=True)
    ]
    y = torch.empty((len(x), len(weight), *size), memory_format=torch.channels_last)
    for part in row_slices(len(x), max(1, _VALUES_AT_ONCE // max(1, x.shape[1:].numel()))):
        frames, out = x[part], y[part]
        absmax = max(frames.amax().item(), -frames.amin().item())  # the largest of both is NaN if there is one
        if math.isfinite(absmax):
            scale = max(absmax / _LARGEST, _SMALLEST_SCALE)
            operands = (scale, packed, weight_scale.flatten(), bias, stride, padding)
            both = _bytes(frames, scale)
            if 2 * out.numel() <= _SUMS_AT_ONCE:
                low, high = _product(both, *operands).chunk(2)
            else:
                low, high = (_product(codes, *operands) for codes in both.chunk(2))
            torch.add(low, high, alpha=256, out=out)
        else:  # which integers cannot carry
            out.copy_(F.conv2d(frames, weight.float() * weight_scale, bias, stride, padding))
        if addend is not None:
            out += addend[part]
        if relu:
            out.relu_()
    return y


def _bytes(x: Tensor, scale: float) -> Tensor:
    """x [f, C, h, w] = scale * (256 * high + low), rounded -> low and high [2f, C, h, w], uint8 and channels last.

    Both are `_U8_OFFSET` too large. Some values at a time, so that only x and the bytes leave the cache.
    """
    pixels = x.permute(0, 2, 3, 1)
    both = torch.empty(2, *pixels.shape, dtype=torch.uint8)
    values, (low, high) = pixels.flatten(), both.flatten(1)
    floats = torch.empty(min(len(values), _VALUES_AT_ONCE))
    # From 2^23 to 2^24 floats are whole numbers: a sum there is rounded to one, which its last bits are.
    offset = torch.tensor(2.0**23 + 257 * _U8_OFFSET)
    for part in row_slices(len(values), _VALUES_AT_ONCE):
        count = part.stop - part.start
        codes = torch.add(offset, values[part], alpha=1 / scale, out=floats[:count]).view(torch.int32)
        low[part] = codes
        high[part] = codes.bitwise_right_shift_(8)
    return both.flatten(0, 1).permute(0, 3, 1, 2)


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
        try:
            got = int8_conv2d(*operands)
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
    """codes [f, C, h, w] of `_bytes` -> `scale * weight_scale * convolution + bias / 257` in fp32.

    Both bytes get the same part of the bias, so that `low + 256 * high` has all of it.
    """
    zeros = torch.zeros(len(weight_scale), dtype=torch.int32)
    operands = (codes, scale, _U8_OFFSET, packed, weight_scale, zeros, None if bias is None else bias / 257)
    geometry = (list(stride), list(padding), [1, 1], 1)
    y: Tensor = torch.ops.onednn.qconv2d_pointwise(*operands, *geometry, 1.0, 0, torch.float32, "none", [], "")
    return y
