"""The image encoder: a DINOv2 vision transformer with register tokens.

Source of the architecture: Oquab et al., "DINOv2" (2023); Darcet et al., "Vision Transformers Need Registers" (2023).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggt_int8.model.config import VGGTConfig
from vggt_int8.model.layers import Block


class PatchEmbed(nn.Module):
    """Images [F, 3, H, W] -> one token per patch [F, H/p * W/p, C], row by row."""

    def __init__(self, patch_size: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class Encoder(nn.Module):
    """Normalized images [F, 3, H, W] -> normalized patch tokens [F, H/p * W/p, C]; frames are independent."""

    def __init__(self, config: VGGTConfig) -> None:
        super().__init__()
        dim, num_registers = config.embed_dim, config.num_register_tokens
        self.patch_size = config.patch_size
        self.grid_size = config.img_size // config.patch_size
        self.num_special = 1 + num_registers
        self.patch_embed = PatchEmbed(config.patch_size, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid_size**2, dim))
        self.register_tokens = nn.Parameter(torch.zeros(1, num_registers, dim)) if num_registers else None
        # In the checkpoint, but only used by DINOv2's own pretraining.
        self.mask_token = nn.Parameter(torch.zeros(1, dim), requires_grad=False)
        self.blocks = nn.ModuleList(
            Block(dim, config.encoder_num_heads, config.mlp_ratio, norm_eps=1e-6, layer_scale=1.0)
            for _ in range(config.encoder_depth)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size
        x = self.embed(self.patch_embed(images), height, width)
        for block in self.blocks:
            x = block(x)
        return self.norm(x[:, self.num_special :])

    def embed(self, patches: Tensor, height: int, width: int) -> Tensor:
        """Patch tokens [F, P, C] -> [class token, registers, patches], with position embeddings for all but the
        registers.
        """
        cls_position, patch_positions = self.resized_position_embedding(height, width)
        tokens = [self.cls_token + cls_position]
        if self.register_tokens is not None:
            tokens.append(self.register_tokens)
        special = torch.cat(tokens, dim=1).to(patches)
        return torch.cat([special.expand(len(patches), -1, -1), patches + patch_positions.to(patches)], dim=1)

    def resized_position_embedding(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Position embedding [1, 1, C] of the class token and [1, height * width, C] of the patches.

        An fp32 island, because the antialiased resize does not exist in half precision on every device. It is cheap and
        not cached, since it depends on a parameter.
        """
        cls_position, patch_positions = self.pos_embed.split([1, self.grid_size**2], dim=1)
        if (height, width) == (self.grid_size, self.grid_size):
            return cls_position, patch_positions
        grid = patch_positions.float().transpose(1, 2).unflatten(-1, (self.grid_size, self.grid_size))
        grid = F.interpolate(grid, size=(height, width), mode="bicubic", antialias=True)
        return cls_position, grid.flatten(2).transpose(1, 2)
