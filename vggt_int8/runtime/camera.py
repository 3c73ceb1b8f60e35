"""The camera head on fused blocks. It has one row per frame, so its time is that of reading the weights."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vggt_int8.model.camera_head import CameraHead
from vggt_int8.runtime.blocks import run_block
from vggt_int8.runtime.linear import linear, norm_linear


def run_camera_head(head: CameraHead, camera_tokens: Tensor) -> Tensor:
    """Camera tokens [B, S, 2C] -> pose encoding [B, S, 9] fp32, after the last refinement."""
    batch, frames = camera_tokens.shape[:2]
    tokens = head.token_norm(camera_tokens.flatten(0, 1))
    normed = head.adaln_norm(tokens)
    pose = head.empty_pose_tokens.to(tokens).expand(batch, frames, -1).flatten(0, 1)
    total: Tensor | None = None
    for _ in range(head.iterations):
        modulation = linear(F.silu(linear(pose, head.embed_pose)), head.poseLN_modulation[1])
        shift, scale, gate = modulation.chunk(3, dim=-1)
        x = tokens + gate * (normed * (1 + scale) + shift)
        for block in head.trunk:
            x = run_block(block, x, batch, None, rows=len(x))
        hidden = norm_linear(x, head.trunk_norm, head.pose_branch.fc1, gelu=True)
        delta = linear(hidden, head.pose_branch.fc2).float()
        total = delta if total is None else total + delta
        pose = total.to(tokens.dtype)
    assert total is not None
    total = total.view(batch, frames, -1)
    return torch.cat([total[..., :7], F.relu(total[..., 7:])], dim=-1)
