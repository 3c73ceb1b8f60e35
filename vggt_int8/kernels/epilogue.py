"""The epilogue of an integer GEMM: one description for all implementations."""

from typing import NamedTuple

import torch
from torch import Tensor


class Epilogue(NamedTuple):
    """The int32 sums times both scales, then in fp32, in this order, the optional steps, with one rounding at the end.

    bias: [N] float.
    dtype: of the result, if that is floats.
    gelu: apply exact GELU.
    gamma, residual: [N] and [M, N] float, given together: `residual + gamma * y`.
    out_scale: for rows that become codes (`int8_gemm_quantize`): static scales as `input_scale` of `quantize_rows`, or
        None for dynamic ones.
    rotation: for rows that become codes: group size of `rotate`, or 0.

    A tuple, because every call makes one, which takes a third of the time of a frozen dataclass.
    """

    bias: Tensor | None
    dtype: torch.dtype
    gelu: bool = False
    gamma: Tensor | None = None
    residual: Tensor | None = None
    out_scale: Tensor | None = None
    rotation: int = 0
