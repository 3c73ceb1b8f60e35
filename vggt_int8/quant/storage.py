"""How a quantized layer holds its tensors: int8 codes, fp32 scales, fp16 bias, whatever the model's dtype is."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vggt_int8.kernels.cpu_threads import PIECE, pieces
from vggt_int8.kernels.reference import CODE_MAX, quantize, scale_from_absmax

# Elements of a weight that are floats at once while it is encoded: bounds the memory of quantizing a large layer. On a
# CPU as many as one thread does by itself: several weights are encoded at once.
_ENCODE_ELEMENTS = 1 << 18
_ONES_ARE_LAST = 1.5 * 2**23  # of an fp32 number of this size


class Int8Storage(nn.Module):
    """Base of the INT8 layers: `weight` int8, `weight_scale` fp32, `bias` fp16 or None, none of them trainable."""

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def _allocate(
        self,
        shape: tuple[int, ...],
        scale_shape: tuple[int, ...],
        bias: bool,
        device: torch.device | str | None,
    ) -> None:
        self.weight = self._parameter(torch.empty(shape, dtype=torch.int8, device=device))
        self.weight_scale = self._parameter(torch.empty(scale_shape, dtype=torch.float32, device=device))
        bias_shape = (self.weight_scale.numel(),)
        self.bias = self._parameter(torch.empty(bias_shape, dtype=torch.float16, device=device)) if bias else None

    @staticmethod
    def _parameter(tensor: Tensor) -> nn.Parameter:
        return nn.Parameter(tensor, requires_grad=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        # .half(), .bfloat16() and .to(dtype) reach modules through here. A scale rounded to fp16 would be another
        # model, so only the device is followed.
        def device_only(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(device_only, recurse)


def encode(weight: Tensor, channel_axis: int) -> tuple[Tensor, Tensor]:
    """Quantize a float weight of any shape, one scale per index of `channel_axis`.

    Returns int8 codes in the weight's shape and an fp32 scale that broadcasts over it. Raises `ValueError` for NaN or
    inf.
    """
    codes, scale = empty_encoding(weight, channel_axis)
    encode_into(codes, scale, weight, channel_axis)
    return codes, scale


def empty_encoding(weight: Tensor, channel_axis: int) -> tuple[Tensor, Tensor]:
    """What `encode` returns, not filled yet."""
    scale_shape = [size if axis == channel_axis else 1 for axis, size in enumerate(weight.shape)]
    codes = torch.empty_like(weight, dtype=torch.int8, memory_format=torch.contiguous_format)
    return codes, weight.new_empty(scale_shape, dtype=torch.float32)


def encode_into(codes: Tensor, scale: Tensor, weight: Tensor, channel_axis: int) -> None:
    """`encode` into what `empty_encoding` made. Works in slices along the first axis, so that beside the result only a
    few megabytes of floats exist. Raises `ValueError` for NaN or inf; then the codes are not filled.
    """
    others = tuple(axis for axis in range(weight.ndim) if axis != channel_axis)
    at_once = PIECE if weight.device.type == "cpu" else _ENCODE_ELEMENTS
    rows = max(1, at_once // max(1, weight[0].numel()))
    parts = [part.abs().amax(others, keepdim=True) for part in weight.split(rows)]
    scale.copy_(scale_from_absmax(torch.cat(parts) if channel_axis == 0 else torch.stack(parts).amax(0)))
    if not bool(scale.isfinite().all()):
        raise ValueError("the weight holds NaN or inf, so it has no INT8 scale")
    for start in range(0, weight.shape[0], rows):
        part_scale = scale[start : start + rows] if channel_axis == 0 else scale
        part = weight[start : start + rows]
        codes[start : start + rows] = (
            _quantize_alone(part, part_scale) if at_once == PIECE else quantize(part, part_scale)
        )


def _quantize_alone(x: Tensor, scale: Tensor) -> Tensor:
    """`quantize` for fewer elements than PyTorch shares out. It does so with `round` from 2048 on; a sum with a number
    whose last digit is the ones rounds just so, half to even.
    """
    return (x.float() / scale).clamp_(-CODE_MAX, CODE_MAX).add_(_ONES_ARE_LAST).sub_(_ONES_ARE_LAST).to(torch.int8)


def all_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or inf, looked at by this thread alone if on a CPU."""
    return all(bool(part.isfinite().all()) for part in pieces(tensor))


def to_fp16(tensor: Tensor, what: str) -> Tensor:
    """Floats as stored. Raises `ValueError` that calls the tensor `what`, for NaN, inf and what fp16 cannot hold."""
    half = tensor
    if tensor.dtype != torch.float16:
        half = torch.empty_like(tensor, dtype=torch.float16)
        copy_pieces(half, tensor)
    if not all_finite(half):
        if not all_finite(tensor):
            raise ValueError(f"the {what} holds NaN or inf")
        raise ValueError(f"the {what} holds {tensor.abs().max().item():g}, which fp16 (at most 65504) cannot store")
    return half


def copy_pieces(target: Tensor, source: Tensor) -> None:
    """`target.copy_(source)` for tensors of one shape, by this thread alone if on a CPU."""
    if target.is_contiguous() and source.is_contiguous():
        for to, part in zip(pieces(target), pieces(source), strict=True):
            to.copy_(part)
    else:
        target.copy_(source)
