"""How a quantized layer holds its tensors: int8 codes, fp32 scales, fp16 bias, whatever the model's dtype is."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vggt_int8.kernels.reference import quantize, scale_from_absmax

# Rows of a weight that are floats at once while it is encoded: bounds the memory of quantizing a large layer.
_ENCODE_ELEMENTS = 1 << 18


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

    Returns int8 codes in the weight's shape and an fp32 scale that broadcasts over it. Works in slices along the
    first axis, so that beside the result only a few megabytes of floats exist. Raises `ValueError` for NaN or inf.
    """
    others = tuple(axis for axis in range(weight.ndim) if axis != channel_axis)
    rows = max(1, _ENCODE_ELEMENTS // max(1, weight[0].numel()))
    parts = [part.abs().amax(others, keepdim=True) for part in weight.split(rows)]
    scale = scale_from_absmax(torch.cat(parts) if channel_axis == 0 else torch.stack(parts).amax(0))
    if not bool(scale.isfinite().all()):
        raise ValueError("the weight holds NaN or inf, so it has no INT8 scale")
    codes = torch.empty_like(weight, dtype=torch.int8, memory_format=torch.contiguous_format)
    for start in range(0, weight.shape[0], rows):
        part_scale = scale[start : start + rows] if channel_axis == 0 else scale
        codes[start : start + rows] = quantize(weight[start : start + rows], part_scale)
    return codes, scale


def to_fp16(tensor: Tensor, what: str) -> Tensor:
    """Floats as stored. Raises `ValueError` that calls the tensor `what`, for NaN, inf and what fp16 cannot hold."""
    half = tensor.to(torch.float16)
    if not bool(half.isfinite().all()):
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"the {what} holds NaN or inf")
        raise ValueError(f"the {what} holds {tensor.abs().max().item():g}, which fp16 (at most 65504) cannot store")
    return half
