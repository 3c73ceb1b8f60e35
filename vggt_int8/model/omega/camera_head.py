"""The camera head: poses of all frames in one pass over their camera and register tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggt_int8.model.camera_head import POSE_DIM
from vggt_int8.model.layers import Block
from vggt_int8.model.omega.config import VGGTOmegaConfig
from vggt_int8.model.omega.layers import OmegaAttention

LEAST_FIELD_OF_VIEW = 0.01  # radians; added, so that no focal length is infinite


def token_blocks(config: VGGTOmegaConfig, depth: int, heads: int) -> nn.Sequential:
    """The blocks of a head that reads camera and register tokens, 2C wide."""
    width, ratio = 2 * config.embed_dim, config.mlp_ratio
    return nn.Sequential(*(Block(width, heads, ratio, attention=OmegaAttention) for _ in range(depth)))


class OmegaCameraHead(nn.Module):
    """Camera and register tokens [B, S, 1 + R, 2C] -> pose encodings [B, S, 9] fp32.

    Translation 3, quaternion 4 (x, y, z, w), field of view 2 (height, width; radians), as in VGGT.
    """

    def __init__(self, config: VGGTOmegaConfig) -> None:
        super().__init__()
        dim = 2 * config.embed_dim
        self.token_norm = nn.LayerNorm(dim)
        self.trunk = token_blocks(config, config.camera_depth, config.camera_num_heads)
        self.trunk_norm = nn.LayerNorm(dim)
        self.camera_branch = nn.Sequential(nn.Linear(dim, dim // 2), nn.GELU(), nn.Linear(dim // 2, POSE_DIM))

    @property
    def pose_output(self) -> nn.Linear:
        """The linear that writes the poses."""
        last = self.camera_branch[2]
        assert isinstance(last, nn.Linear)
        return last

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.trunk(self.token_norm(tokens.flatten(1, 2)))
        camera = x.unflatten(1, tokens.shape[1:3])[:, :, 0]
        pose = self.camera_branch(self.trunk_norm(camera)).float()
        return torch.cat([pose[..., :7], F.relu(pose[..., 7:]) + LEAST_FIELD_OF_VIEW], dim=-1)
