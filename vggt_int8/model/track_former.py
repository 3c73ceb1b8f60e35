"""The transformer of the track head: attention over a point's frames, alternating with attention over a frame's points.

Points attend to each other through a fixed number of virtual tracks, so the cost grows linearly with the number of
points. Source of the architecture: Karaev et al., "CoTracker" (2023). Module names are those of the public checkpoint.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggt_int8.model.config import TRACK_HEADS
from vggt_int8.model.layers import Mlp

DEPTH = 6
MLP_RATIO = 4
VIRTUAL_TRACKS = 64


class MultiheadAttention(nn.Module):
    """Attention of x [B, N, C] to a context [B, L, C] -> [B, N, C], with `nn.MultiheadAttention`'s parameter names."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        dim = x.shape[-1]
        q_weight, kv_weight = self.in_proj_weight.split([dim, 2 * dim])
        q_bias, kv_bias = self.in_proj_bias.split([dim, 2 * dim])
        q = F.linear(x, q_weight, q_bias)
        k, v = F.linear(context, kv_weight, kv_bias).chunk(2, dim=-1)
        q, k, v = (y.unflatten(-1, (TRACK_HEADS, -1)).transpose(1, 2) for y in (q, k, v))
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class SelfBlock(nn.Module):
    """x [B, N, C] -> [B, N, C]. The shortcut starts after the first norm, as the checkpoint was trained."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.attn = MultiheadAttention(dim)
        self.mlp = Mlp(dim, MLP_RATIO * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x)
        x = x + self.attn(x, x)
        return x + self.mlp(self.norm2(x))


class CrossBlock(nn.Module):
    """x [B, N, C], context [B, L, C] -> [B, N, C]; the shortcut as in `SelfBlock`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.norm_context = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.cross_attn = MultiheadAttention(dim)
        self.mlp = Mlp(dim, MLP_RATIO * dim, dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = self.norm1(x)
        x = x + self.cross_attn(x, self.norm_context(context))
        return x + self.mlp(self.norm2(x))


class UpdateFormer(nn.Module):
    """One token per point and frame [B, N, S, in_dim] -> its update [B, N, S, out_dim]."""

    def __init__(self, in_dim: int, dim: int, out_dim: int) -> None:
        super().__init__()
        self.input_norm = nn.LayerNorm(in_dim)
        self.input_transform = nn.Linear(in_dim, dim)
        self.output_norm = nn.LayerNorm(dim)
        self.flow_head = nn.Linear(dim, out_dim)
        self.virual_tracks = nn.Parameter(torch.zeros(1, VIRTUAL_TRACKS, 1, dim))
        self.time_blocks = nn.ModuleList(SelfBlock(dim) for _ in range(DEPTH))
        self.space_virtual_blocks = nn.ModuleList(SelfBlock(dim) for _ in range(DEPTH))
        self.space_point2virtual_blocks = nn.ModuleList(CrossBlock(dim) for _ in range(DEPTH))
        self.space_virtual2point_blocks = nn.ModuleList(CrossBlock(dim) for _ in range(DEPTH))

    def forward(self, x: Tensor) -> Tensor:
        batch, points, frames, _ = x.shape
        start = self.input_transform(self.input_norm(x))
        virtual = self.virual_tracks.to(start).expand(batch, -1, frames, -1)
        tokens = torch.cat([start, virtual], dim=1)  # [B, N + V, S, C]
        for layer in range(DEPTH):
            tokens = self.time_blocks[layer](tokens.flatten(0, 1)).unflatten(0, (batch, -1))
            by_frame = tokens.transpose(1, 2).flatten(0, 1)  # [B * S, N + V, C]
            real, virtual = by_frame.split([points, VIRTUAL_TRACKS], dim=1)
            virtual = self.space_virtual2point_blocks[layer](virtual, real)
            virtual = self.space_virtual_blocks[layer](virtual)
            real = self.space_point2virtual_blocks[layer](real, virtual)
            tokens = torch.cat([real, virtual], dim=1).unflatten(0, (batch, frames)).transpose(1, 2)
        return self.flow_head(self.output_norm(tokens[:, :points] + start))
