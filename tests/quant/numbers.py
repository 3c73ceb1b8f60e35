"""Numbers that tests of layers share: seeded ones, and the Hadamard matrix by its definition."""

import math

import torch
from torch import Tensor


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal, fp32."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def hadamard(order: int) -> Tensor:
    """[order, order] fp64, orthonormal, entry by entry: (-1)^popcount(i & j) / sqrt(order)."""
    signs = [[(-1) ** (i & j).bit_count() for j in range(order)] for i in range(order)]
    return torch.tensor(signs, dtype=torch.float64) / math.sqrt(order)
