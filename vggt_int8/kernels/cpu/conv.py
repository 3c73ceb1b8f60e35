"""Convolutions with INT8 weights on a CPU, if `compiled.py` has its kernels: integers times integers.

The activations of a frame are rounded to integers of 15 to 16 bits with one scale, as many bits as keep the int32 sums
exact. The rounding error of x is at most 1.6e-5 of its largest value in the frame, 3.1e-5 for the widest convolutions,
which is that of fp16 for values down to a sixteenth of it, and negligible beside the rounding of the weights (4e-3).
"""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from vggt_int8.kernels.cpu import compiled


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

    weight [N, C, kh, kw] int8, weight_scale [N, 1, 1, 1] fp32, bias [N] float, addend fp32 like the result, which is
    channels last. Only available if `int8_conv_is_there()`; has no derivative. Raises ValueError for other operands.
    """
    size = _checked_size(x, weight, weight_scale, bias, stride, padding, addend)
    pixels = x.permute(0, 2, 3, 1).contiguous()
    other = None if addend is None else addend.permute(0, 2, 3, 1).contiguous()
    (frames, *_, channels), (outputs, _, *taps) = pixels.shape, weight.shape
    y, finite = pixels.new_empty(frames, *size, outputs), ctypes.create_string_buffer(frames)
    stored, floats = weight.contiguous(), compiled.as_floats(weight_scale, bias)
    geometry = (frames, channels, *x.shape[2:], outputs, *taps, *stride, *padding)
    compiled.call("vi_conv", pixels, stored, *floats, other, int(relu), *geometry, y, ctypes.addressof(finite))
    y = y.permute(0, 3, 1, 2)
    for frame in (i for i, flag in enumerate(finite.raw) if not flag):  # holds NaN or inf, which integers cannot carry
        out = F.conv2d(x[frame], weight.float() * weight_scale, floats[1], stride, padding)
        if addend is not None:
            out += addend[frame]
        y[frame] = out.relu() if relu else out
    return y


def _checked_size(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    addend: Tensor | None,
) -> tuple[int, int]:
    """Height and width of the result, after checking all operands, which the kernel reads and writes unchecked."""
    tensors = (x, weight, weight_scale, bias, addend)
    if any(t is not None and t.device.type != "cpu" for t in tensors):
        raise ValueError(f"all operands must be on a CPU, not {[t if t is None else str(t.device) for t in tensors]}")
    if x.ndim != 4 or weight.ndim != 4 or (x.dtype, weight.dtype) != (torch.float32, torch.int8):
        raise ValueError(
            f"x must be fp32 [f, C, h, w] and weight int8 [N, C, kh, kw], "
            f"not {x.dtype} {list(x.shape)} and {weight.dtype} {list(weight.shape)}"
        )
    frames, channels, *size = x.shape
    outputs, inputs, *taps = weight.shape
    out = [(n + 2 * p - k) // step + 1 for n, p, k, step in zip(size, padding, taps, stride, strict=True)]
    if inputs != channels or min(*size, *out, *taps) < 1:
        raise ValueError(f"weight {list(weight.shape)} with padding {padding} does not fit x {list(x.shape)}")
    if weight_scale.numel() != outputs or (bias is not None and bias.numel() != outputs):
        shapes = (list(weight_scale.shape), bias if bias is None else list(bias.shape))
        raise ValueError(f"weight_scale and bias must have {outputs} values, not {shapes[0]} and {shapes[1]}")
    if addend is not None and (addend.dtype != torch.float32 or addend.shape != (frames, outputs, *out)):
        expected = [frames, outputs, *out]
        raise ValueError(f"addend must be fp32 {expected}, not {addend.dtype} {list(addend.shape)}")
    return out[0], out[1]


def int8_conv_is_there() -> bool:
    """Whether this machine has the integer convolution."""
    return compiled.library() is not None
