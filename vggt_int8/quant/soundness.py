"""Cheap checks for corruption in the tensors of an INT8 layer when they are loaded.

Symmetric quantization gives every channel the scale `absmax / 127`, so its largest code is 127 or -127; a channel of
zeros has scale 1 and codes of 0; the code -128 never occurs. A hole in a file reads as zeros under another scale.
"""

import torch
from torch import Tensor

from vggt_int8.kernels.cpu.threads import PIECE
from vggt_int8.kernels.reference import CODE_MAX

SMALLEST_SCALE = torch.finfo(torch.float32).tiny
SMALLEST_ABSMAX = CODE_MAX * SMALLEST_SCALE
LARGEST_SCALE = 1.001 * torch.finfo(torch.float32).max / CODE_MAX
# For checkpoints of a VGGT, whose floats are all fp16.
LARGEST_FP16_SCALE = 1.001 * torch.finfo(torch.float16).max / CODE_MAX


def code_range(codes: Tensor, scale_shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Lowest and highest code per channel: int8 [N, K] or [O, I, kh, kw] -> int16 in the scale's shape.

    A leading axis of size 1, as in stored codes, is ignored.
    """
    if codes.ndim > len(scale_shape):
        codes = codes.select(0, 0)
    others = [axis for axis, size in enumerate(scale_shape) if size == 1]
    if not codes.numel() or not others:
        return codes.short(), codes.short()
    rows = max(1, PIECE // codes[0].numel()) if codes.device.type == "cpu" else len(codes)
    parts = codes.split(rows)
    low, high = [part.amin(others, keepdim=True) for part in parts], [part.amax(others, keepdim=True) for part in parts]
    if 0 in others:
        return torch.stack(low).amin(0).short(), torch.stack(high).amax(0).short()
    return torch.cat(low).short(), torch.cat(high).short()


def largest_codes(low: Tensor, high: Tensor) -> Tensor:
    """The largest magnitude in a `code_range`."""
    return torch.maximum(high, -low)


def all_alike(low: Tensor, high: Tensor, count: int) -> bool:
    """Whether `count` codes with this `code_range` all equal one non-zero number, which does not occur in a trained
    layer.
    """
    return count > low.numel() and bool(low.min() == high.max()) and bool(low.min() != 0)


def codes_problem(largest: Tensor, scale: Tensor) -> str | None:
    """What in the codes no quantizer produces, from the `largest_codes` of each channel and its scale; None if
    nothing.
    """
    if bool((largest > CODE_MAX).any()):
        return "codes of -128, which no scale makes,"
    holes = int(((largest == 0) & (scale != 1)).sum())
    return f"{holes} channels of zeros whose scale is not 1" if holes else None


def scale_problem(scale: Tensor, largest: float = LARGEST_SCALE) -> str | None:
    """What in fp32 scales no weight produces; None if nothing."""
    if not bool(scale.isfinite().all()):
        return "NaN or inf"
    if not bool((scale > 0).all()):
        return "scales that are not positive"
    if bool((scale < SMALLEST_SCALE).any()):
        return "denormal scales, which no weight has,"
    return f"scales of up to {scale.max():g}, which no such weight has," if bool((scale > largest).any()) else None


def unused_range(largest: Tensor) -> int:
    """Number of channels whose codes do not use the full range: from another tool, or corrupted."""
    return int(((largest > 0) & (largest < CODE_MAX)).sum())
