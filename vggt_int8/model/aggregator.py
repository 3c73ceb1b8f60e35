"""The aggregator: alternating attention inside each frame and across all frames, over encoded image patches.

Source of the architecture: Wang et al., "VGGT: Visual Geometry Grounded Transformer" (2025), section 3.2.
"""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from vggt_int8.global_attention import GlobalAttention
from vggt_int8.model.config import VGGTConfig
from vggt_int8.model.encoder import Encoder
from vggt_int8.model.layers import Block, first_and_other_frames
from vggt_int8.model.tables import image_statistics, rope_table
from vggt_int8.shards import FrameShard

DESCRIPTOR = -1  # key of the descriptors, beside layer numbers


class Aggregator(nn.Module):
    """Images [B, S, 3, H, W] in [0, 1] -> tokens of the requested layers, {layer: [B, S, P, 2C]}.

    The P tokens of a frame are the camera token, the registers, and the patches row by row. A layer is one frame block
    and one global block; its output is the concatenation of both results.
    """

    def __init__(self, config: VGGTConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.patch_size = config.patch_size
        self.num_special = 1 + config.num_register_tokens
        self.head_dim = dim // config.num_heads
        self.rope_freq = config.rope_freq
        self.patch_embed = Encoder(config)
        self.frame_blocks = nn.ModuleList(
            Block(dim, config.num_heads, config.mlp_ratio, qk_norm=True) for _ in range(config.depth)
        )
        self.global_blocks = nn.ModuleList(
            Block(dim, config.num_heads, config.mlp_ratio, qk_norm=True) for _ in range(config.depth)
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
        """Keeps the tokens of `layers` only, and runs no block after the last of them.

        attention: None for exact attention.
        descriptors: also return `DESCRIPTOR` -> one vector per frame, fp32 [B, S, C], see `describe`.
        shard: the frames of this process, if the scene is sharded.
        """
        attention = attention or GlobalAttention.of(len(self.global_blocks))
        batch, frames, _, height, width = images.shape
        in_scene = frames if shard is None else shard.frames
        tokens = self.embed(images, shard)
        kept = {DESCRIPTOR: describe(tokens, self.num_special)} if descriptors else {}
        tokens = tokens.flatten(0, 1)  # linears see frames, [B * S, P, C], in every block
        rope = rope_table(
            *(height // self.patch_size, width // self.patch_size, self.num_special),
            *(self.head_dim, self.rope_freq),
            device=tokens.device,
        )
        for layer in range(max(layers) + 1):
            frame_tokens = self.frame_blocks[layer](tokens, rope)
            scenes = None if attention.looks(layer, in_scene) == "frames" else batch
            tokens = self.global_blocks[layer](frame_tokens, rope, scenes, attention.keys(layer, in_scene), shard)
            if layer in layers:
                kept[layer] = torch.cat([frame_tokens, tokens], dim=-1).unflatten(0, (batch, frames))
        return kept

    def embed(self, images: Tensor, shard: FrameShard | None = None) -> Tensor:
        """Images [B, S, 3, H, W] -> tokens [B, S, P, C]."""
        has_first = shard is None or shard.has_first
        return embed_images(images, self.patch_embed, self.camera_token, self.register_token, has_first)


def describe(tokens: Tensor, special: int) -> Tensor:
    """Embedded frames [..., P, C] -> the mean patch token of each frame, fp32 [..., C]. special: number of tokens
    before the patches.

    After subtracting the mean over many frames, the vectors of frames that show the same place point in the same
    direction.
    """
    return tokens[..., special:, :].mean(-2, dtype=torch.float32)


def embed_images(
    images: Tensor, encoder: nn.Module, camera_token: Tensor, register_token: Tensor, has_first: bool = True
) -> Tensor:
    """Images [B, S, 3, H, W] -> tokens [B, S, P, C]. Normalized in fp32, then cast to the parameters' dtype.

    encoder: normalized images [F, 3, H, W] -> patch tokens.
    camera_token, register_token: [1, 2, 1, C] and [1, 2, R, C], placed before the patches.
    has_first: as in `first_and_other_frames`.
    """
    batch, frames = images.shape[:2]
    mean, std = image_statistics(device=images.device).unbind(0)
    images = ((images - mean) / std).to(camera_token.dtype)
    patches = encoder(images.flatten(0, 1)).unflatten(0, (batch, frames))
    special = torch.cat([camera_token, register_token], dim=2).to(patches)
    return torch.cat([first_and_other_frames(special, batch, frames, has_first), patches], dim=2)
