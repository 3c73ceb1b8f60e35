"""Attention on a CPU: once the linears of a block multiply integers, it takes as long as all of them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vggt_int8.kernels.cpu import compiled

_MAX_HEAD_DIM = 512


def attention_cpu(q: Tensor, k: Tensor, v: Tensor, integers: bool = False) -> Tensor:
    """softmax(q kᵀ / sqrt(D)) v: q, k, v [B, H, N, D] float -> [B, N, H, D].

    `integers` allows our own kernel, for fp32 where it can be compiled: integers of 14 to 16 bits, with which the
    result is as exact as with all of q, k, v and the weights in fp16. It has no derivative: everything else, and what
    needs gradients, is PyTorch's attention.
    """
    needs_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    if not integers or needs_gradient or not _takes(q, k, v):
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    batch, heads, tokens, dim = q.shape
    out = q.new_empty(batch, tokens, heads, dim)
    compiled.call("vi_attention", q, k, v, out, batch, heads, tokens, dim, *q.stride()[:3])
    return out


def _takes(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the kernel can do it: fp32 views of one layout, not empty, the channels of a head next to one another."""
    alike = all(x.shape == q.shape and x.stride() == q.stride() and x.dtype == torch.float32 for x in (q, k, v))
    fits = q.device.type == "cpu" and q.numel() > 0 and q.stride(3) == 1 and q.shape[3] <= _MAX_HEAD_DIM
    return alike and fits and compiled.library() is not None
