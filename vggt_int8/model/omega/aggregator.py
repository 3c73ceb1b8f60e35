"""The aggregator: attention inside each frame, then between frames, among all tokens or only camera and register
tokens.
"""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from vggt_int8.global_attention import GlobalAttention
from vggt_int8.model.aggregator import DESCRIPTOR, describe, embed_images
from vggt_int8.model.layers import Block
from vggt_int8.model.omega.config import VGGTOmegaConfig
from vggt_int8.model.omega.encoder import OmegaEncoder
from vggt_int8.model.omega.layers import AxialPeriods, OmegaAttention, axial_rope_table
from vggt_int8.shards import FrameShard


class OmegaAggregator(nn.Module):
    """Images [B, S, 3, H, W] in [0, 1] -> tokens of the requested layers, {layer: [B, S, P, 2C]}.

    The P tokens of a frame are the camera token, the registers, and the patches row by row. A layer is one frame block
    and one inter-frame block; its output is the concatenation of both results.
    """

    def __init__(self, config: VGGTOmegaConfig) -> None:
        super().__init__()
        dim, heads = config.embed_dim, config.num_heads
        self.patch_size = config.patch_size
        self.num_special = 1 + config.num_register_tokens
        self.head_dim = dim // heads
        self.register_layers = frozenset(config.register_layers)
        self.patch_embed = OmegaEncoder(config)
        self.rope_embed = AxialPeriods(self.head_dim)
        self.frame_blocks, self.inter_frame_blocks = (
            nn.ModuleList(
                Block(dim, heads, config.mlp_ratio, qk_norm=True, attention=OmegaAttention) for _ in range(config.depth)
            )
            for _ in range(2)
        )
        self.camera_token = nn.Parameter(torch.zeros(1, 2, 1, dim))
        self.register_token = nn.Parameter(torch.zeros(1, 2, config.num_register_tokens, dim))

    def forward(
        self,
        images: Tensor,
        layers: Collection[int],
        attention: GlobalAttention | None = None,
        descriptors: bool = False,
        shard: FrameShard | None = None,
    ) -> dict[int, Tensor]:
        """Arguments and result as in VGGT's `Aggregator`."""
        attention = attention or GlobalAttention.of(len(self.inter_frame_blocks))
        batch, frames, _, height, width = images.shape
        has_first = shard is None or shard.has_first
        tokens = embed_images(images, self.patch_embed, self.camera_token, self.register_token, has_first)
        kept = {DESCRIPTOR: describe(tokens, self.num_special)} if descriptors else {}
        tokens = tokens.flatten(0, 1)
        grid = (height // self.patch_size, width // self.patch_size)
        rope = axial_rope_table(*grid, self.head_dim, device=tokens.device)
        for layer in range(max(layers) + 1):
            frame_tokens = self.frame_blocks[layer](tokens, rope)
            tokens = self.between_frames(layer, frame_tokens, batch, attention, shard)
            if layer in layers:
                kept[layer] = torch.cat([frame_tokens, tokens], dim=-1).unflatten(0, (batch, frames))
        return kept

    def between_frames(
        self, layer: int, tokens: Tensor, scenes: int, attention: GlobalAttention, shard: FrameShard | None = None
    ) -> Tensor:
        """Tokens [B * S, P, C] of several scenes -> the same shape, without positions.

        In a register layer, patches neither attend nor are attended to, and do not change.
        """
        block = self.inter_frame_blocks[layer]
        if layer not in self.register_layers:
            frames = len(tokens) // scenes if shard is None else shard.frames
            alone = attention.looks(layer, frames) == "frames"
            return block(tokens, None, None if alone else scenes, attention.keys(layer, frames), shard)
        special, patches = tokens.split([self.num_special, tokens.shape[1] - self.num_special], dim=1)
        return torch.cat([block(special, None, scenes, None, shard), patches], dim=1)
