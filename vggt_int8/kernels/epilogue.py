"""What follows the integer product of a linear: one description for every way to multiply."""

from typing import NamedTuple

import torch
from torch import Tensor


class Epilogue(NamedTuple):
    """The int32 sums times both scales, then in fp32 and in this order what is asked for, with one rounding at the end.

    bias: [N] float. dtype: of the result, where that are floats. gelu: exact GELU. gamma [N] and residual [M, N] float,
    which come together: `residual + gamma * y`. Of rows that become codes (`int8_gemm_quantize`) alone: rotation, the
    groups of `rotate`, or 0; out_scale, static scales as `input_scale` of `quantize_rows`, or None for dynamic ones.

    A tuple, because every call makes one: that takes a third of the time of a frozen dataclass.
    """

    bias: Tensor | None
    dtype: torch.dtype
    gelu: bool = False
    gamma: Tensor | None = None
    residual: Tensor | None = None
    out_scale: Tensor | None = None
    rotation: int = 0
