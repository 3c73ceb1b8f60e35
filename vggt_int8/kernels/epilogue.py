"""What follows the integer product of a linear: one description for every way to multiply."""

from typing import NamedTuple

import torch
from torch import Tensor


class Epilogue(NamedTuple):
    """The int32 sums times both scales, then in fp32 and in this order what is asked for, with one rounding at the end.

    bias: [N] float. dtype: of the result. gelu: exact GELU. gamma [N] and residual [M, N] float, which come together:
    `residual + gamma * y`. out_scale: one fp32 value; the result are int8 codes under it then, whatever `dtype` is.
    rotation: of rows that become codes under a scale of each row (`int8_gemm_quantize`), the groups of `rotate`; or 0.

    A tuple, because every call makes one: that takes a third of the time of a frozen dataclass.
    """

    bias: Tensor | None
    dtype: torch.dtype
    gelu: bool = False
    gamma: Tensor | None = None
    residual: Tensor | None = None
    out_scale: Tensor | None = None
    rotation: int = 0

    @property
    def out_dtype(self) -> torch.dtype:
        return self.dtype if self.out_scale is None else torch.int8
