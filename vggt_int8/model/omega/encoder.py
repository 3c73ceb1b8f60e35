"""The image encoder: a DINOv3 vision transformer, whose positions are rotary embeddings of the patches.

Source of the architecture: Siméoni et al., "DINOv3" (2025).
"""

import torch
from torch import Tensor, nn

from vggt_int8.model.encoder import PatchEmbed
from vggt_int8.model.layers import Block
from vggt_int8.model.omega.config import STORAGE_TOKENS, VGGTOmegaConfig
from vggt_int8.model.omega.layers import AxialPeriods, OmegaAttention, axial_rope_table


class OmegaEncoder(nn.Module):
    """Normalized images [F, 3, H, W] -> normalized patch tokens [F, H/p * W/p, C]; frames are independent."""

    def __init__(self, config: VGGTOmegaConfig) -> None:
        super().__init__()
        dim, heads = config.embed_dim, config.encoder_num_heads
        self.patch_size = config.patch_size
        self.head_dim = dim // heads
        self.num_special = 1 + STORAGE_TOKENS
        self.patch_embed = PatchEmbed(config.patch_size, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.storage_tokens = nn.Parameter(torch.zeros(1, STORAGE_TOKENS, dim))
        # In the checkpoint, but only used by DINOv3's own pretraining.
        self.mask_token = nn.Parameter(torch.zeros(1, dim), requires_grad=False)
        self.rope_embed = AxialPeriods(self.head_dim)
        self.blocks = nn.ModuleList(
            Block(dim, heads, config.mlp_ratio, layer_scale=1.0, attention=OmegaAttention)
            for _ in range(config.encoder_depth)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size
        x = self.embed(images)
        rope = axial_rope_table(height, width, self.head_dim, device=x.device)
        for block in self.blocks:
            x = block(x, rope)
        return self.norm(x[:, self.num_special :])

    def embed(self, images: Tensor) -> Tensor:
        """Normalized images [F, 3, H, W] -> tokens [F, P, C]: class token and registers, then the patches."""
        patches = self.patch_embed(images)
        special = torch.cat([self.cls_token, self.storage_tokens], dim=1).to(patches)
        return torch.cat([special.expand(len(patches), -1, -1), patches], dim=1)
