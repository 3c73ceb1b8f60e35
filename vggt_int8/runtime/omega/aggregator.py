"""VGGT-Ω's aggregator on fused blocks: encoder and frame blocks run on a few frames at a time, inter-frame blocks on
all.

Inter-frame blocks have no positions. Kernels see that as a rotation by zero, so these blocks run as VGGT's global
blocks do, key frames included. In a register layer they process only camera and register tokens, a few percent of all,
which are copied out and back.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vggt_int8.global_attention import GlobalAttention
from vggt_int8.model.omega.aggregator import OmegaAggregator
from vggt_int8.model.omega.encoder import OmegaEncoder
from vggt_int8.model.omega.layers import axial_rope_table
from vggt_int8.model.tables import constant_table
from vggt_int8.runtime.aggregator import Blocks
from vggt_int8.runtime.blocks import run_block, run_keyframe_block
from vggt_int8.runtime.memory import Plan
from vggt_int8.runtime.token_scales import TokenScales
from vggt_int8.shards import FrameShard


@constant_table
def padded_rope_table(special: int, height: int, width: int, head_dim: int, *, device: torch.device) -> Tensor:
    """[2, special + height * width, D]: `axial_rope_table`, preceded by identity rotations for the special tokens."""
    patches = axial_rope_table(height, width, head_dim, device=device)
    return torch.cat([_unturned(special, head_dim, device), patches], dim=1)


@constant_table
def unturned_table(tokens: int, head_dim: int, *, device: torch.device) -> Tensor:
    """[2, P, D]: cosines and sines of identity rotations."""
    return _unturned(tokens, head_dim, device)


def _unturned(tokens: int, head_dim: int, device: torch.device) -> Tensor:
    ones = torch.ones(1, tokens, head_dim, device=device)
    return torch.cat([ones, torch.zeros_like(ones)])


class OmegaBlocks(Blocks):
    """The aggregator's blocks during one call, as functions of tokens [B * S * P, C] and of the tensor to write to."""

    def __init__(
        self,
        aggregator: OmegaAggregator,
        images: Tensor,
        attention: GlobalAttention,
        plan: Plan,
        shard: FrameShard | None = None,
    ) -> None:
        self.batch, self.frames, _, height, width = images.shape
        self.aggregator, self.attention, self.plan, self.shard = aggregator, attention, plan, shard
        grid = (height // aggregator.patch_size, width // aggregator.patch_size)
        self.rope = padded_rope_table(aggregator.num_special, *grid, aggregator.head_dim, device=images.device)
        self.scene_rope = unturned_table(self.rope.shape[1], aggregator.head_dim, device=images.device)
        blocks = [*aggregator.frame_blocks, *aggregator.inter_frame_blocks]
        self.scales = TokenScales(blocks, self.rope.shape[1])

    def scene(self, layer: int, x: Tensor, out: Tensor | None) -> Tensor:
        block = self.aggregator.inter_frame_blocks[layer]
        if layer not in self.aggregator.register_layers:
            return self.between_frames(block, layer, x, out)
        if out is None:
            out = x.clone()
        elif out is not x:
            out.copy_(x)
        tokens, count = out.view(self.batch * self.frames, self.rope.shape[1], -1), self.aggregator.num_special
        special = tokens[:, :count].clone(memory_format=torch.contiguous_format).flatten(0, 1)
        rope = unturned_table(count, self.aggregator.head_dim, device=x.device)
        if self.shard is None:
            run_block(block, special, self.batch, rope, self.plan.rows, out=special)
        else:
            at_once = (self.plan.rows, len(tokens))
            run_keyframe_block(block, special, self.batch, None, rope, *at_once, out=special, shard=self.shard)
        tokens[:, :count] = special.view(len(tokens), count, -1)
        return out


def encode(encoder: OmegaEncoder, pixels: Tensor, grid: tuple[int, int], rows: int) -> Tensor:
    """Normalized images [f, 3, H, W] -> patch tokens [f, h * w, C]."""
    x = encoder.embed(pixels)
    shape, x = x.shape, x.flatten(0, 1)
    scales = TokenScales(encoder.blocks, shape[1])
    rope = padded_rope_table(encoder.num_special, *grid, encoder.head_dim, device=x.device)
    for block in encoder.blocks:
        x = run_block(block, x, len(pixels), rope, rows, scales=scales)
    norm = encoder.norm
    x = x.view(shape)[:, encoder.num_special :]
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
