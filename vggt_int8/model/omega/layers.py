"""What differs in VGGT-Ω's blocks: attention without a bias for keys, rotary embeddings of patches only."""

import math

import torch
from torch import Tensor

from vggt_int8.model.layers import Attention
from vggt_int8.model.omega.constants import ConstantBuffer, KeylessBiasLinear
from vggt_int8.model.tables import constant_table

ROPE_BASE = 100.0


class AxialPeriods(ConstantBuffer):
    """Holds `periods` [D/4], wavelengths of the rotary embedding, under the checkpoint's name.

    `axial_rope_table` computes them in fp32: those stored in fp16 would change tokens by 1e-5.
    """

    buffer = "periods"

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.register_buffer(self.buffer, self.constants())

    def constants(self, device: torch.device | None = None) -> Tensor:
        return axial_periods(self.head_dim, device)


def axial_periods(head_dim: int, device: torch.device | None = None) -> Tensor:
    """[D/4] fp32: from 1 to nearly `ROPE_BASE`, in equal ratios."""
    count = head_dim // 4
    return (ROPE_BASE ** (torch.arange(count, dtype=torch.float64, device=device) / count)).float()


@constant_table
def axial_rope_table(height: int, width: int, head_dim: int, *, device: torch.device) -> Tensor:
    """[2, height * width, D]: cosine and sine for a frame's patches, row by row.

    A patch is at its center, divided by the longer side of the grid and mapped to [-1, 1]. The first quarter of the D
    channels rotates with the row, the second with the column, and channel i is paired with channel i + D/2.
    """
    longer = max(height, width)
    row, column = (
        (2 * torch.arange(size, dtype=torch.float64, device=device) + 1) / longer - 1 for size in (height, width)
    )
    positions = torch.stack([row.repeat_interleave(width), column.repeat(height)], dim=-1)  # [height * width, 2]
    angles = 2 * math.pi * positions[:, :, None] / axial_periods(head_dim, device).double()
    angles = angles.flatten(1).repeat(1, 2)
    return torch.stack([angles.cos(), angles.sin()])


def apply_axial_rope(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate queries or keys. x [F, H, P, D] of one frame each, rope [2, N, D] fp32 of its last N tokens -> like x.

    The tokens before them have no position. The fp32 table makes this an fp32 island: the result is rounded to x's
    dtype once.
    """
    cos, sin = rope.unbind(0)
    special, patches = x.split([x.shape[-2] - cos.shape[-2], cos.shape[-2]], dim=-2)
    first, second = patches.chunk(2, dim=-1)
    turned = patches * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([special, turned.to(x.dtype)], dim=-2)


class OmegaAttention(Attention):
    """Self-attention of VGGT-Ω; `rope` as in `apply_axial_rope`."""

    projection = KeylessBiasLinear
    rotate = staticmethod(apply_axial_rope)
