"""The camera head: refines one pose encoding per frame, a few times, from the frames' camera tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggt_int8.model.config import VGGTConfig
from vggt_int8.model.layers import Block, Mlp

POSE_DIM = 9  # translation 3, quaternion 4 (x, y, z, w), field of view 2 (height, width; radians)


class CameraHead(nn.Module):
    """Camera tokens [B, S, 2C] -> pose encodings [B, S, 9] fp32, one per iteration; the last one is the result."""

    def __init__(self, config: VGGTConfig) -> None:
        super().__init__()
        dim = 2 * config.embed_dim
        self.iterations = config.camera_iterations
        self.token_norm = nn.LayerNorm(dim)
        self.empty_pose_tokens = nn.Parameter(torch.zeros(1, 1, POSE_DIM))
        self.embed_pose = nn.Linear(POSE_DIM, dim)
        self.poseLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 3 * dim))
        self.adaln_norm = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.trunk = nn.Sequential(
            *(Block(dim, config.camera_num_heads, config.mlp_ratio) for _ in range(config.camera_depth))
        )
        self.trunk_norm = nn.LayerNorm(dim)
        self.pose_branch = Mlp(dim, dim // 2, POSE_DIM)

    def forward(self, camera_tokens: Tensor) -> list[Tensor]:
        tokens = self.token_norm(camera_tokens)
        normed = self.adaln_norm(tokens)
        previous = self.empty_pose_tokens.to(tokens).expand(*tokens.shape[:2], -1)
        pose: Tensor | None = None
        poses = []
        for _ in range(self.iterations):
            shift, scale, gate = self.poseLN_modulation(self.embed_pose(previous)).chunk(3, dim=-1)
            x = tokens + gate * (normed * (1 + scale) + shift)
            # The pose accumulates in fp32. Each iteration has its own loss, so no gradient flows between them.
            delta = self.pose_branch(self.trunk_norm(self.trunk(x))).float()
            pose = delta if pose is None else pose.detach() + delta
            poses.append(torch.cat([pose[..., :7], F.relu(pose[..., 7:])], dim=-1))
            previous = pose.detach().to(tokens.dtype)
        return poses
