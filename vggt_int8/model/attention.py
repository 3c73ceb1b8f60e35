"""Softmax attention as a module, so that it can be replaced by a quantized one. Needs PyTorch alone."""

import torch.nn.functional as F
from torch import Tensor, nn


class SoftmaxAttention(nn.Module):
    """softmax(q kᵀ / sqrt(D)) v. q, k, v [B, H, N, D] -> [B, N, H * D]. Owns no parameters."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
