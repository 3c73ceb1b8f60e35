"""The text head: one token that reads a scene's camera and register tokens, to be compared with embeddings of text."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggt_int8.model.omega.camera_head import token_blocks
from vggt_int8.model.omega.config import TEXT_BLOCKS, TEXT_HEADS, VGGTOmegaConfig


class TextAlignmentHead(nn.Module):
    """Camera and register tokens [B, S, 1 + R, 2C] -> embedding [B, 2C] of length 1, and the token it is made of."""

    def __init__(self, config: VGGTOmegaConfig) -> None:
        super().__init__()
        dim = 2 * config.embed_dim
        self.language_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.token_norm = nn.LayerNorm(dim)
        self.readout_blocks = token_blocks(config, TEXT_BLOCKS, TEXT_HEADS)
        self.language_token_norm = nn.LayerNorm(dim)
        self.embedding_projector = nn.Sequential(
            nn.Linear(dim, dim // 2), nn.GELU(), nn.LayerNorm(dim // 2), nn.Linear(dim // 2, dim)
        )

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        scene = self.token_norm(tokens.flatten(1, 2))
        x = torch.cat([self.language_token.to(scene).expand(len(scene), -1, -1), scene], dim=1)
        token = self.language_token_norm(self.readout_blocks(x)[:, 0])
        return F.normalize(self.embedding_projector(token).float(), dim=-1), token.float()
