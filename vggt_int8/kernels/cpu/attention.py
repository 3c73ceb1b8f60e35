"""Attention on a CPU, which takes as long as all linears of a block once these multiply integers."""

import torch
from torch import Tensor

from vggt_int8.kernels.attended import attend_by_pytorch, note
from vggt_int8.kernels.cpu import compiled

_MAX_HEAD_DIM = 512


def attention_cpu(q: Tensor, k: Tensor, v: Tensor, integers: bool = False) -> Tensor:
    """softmax(q kᵀ / sqrt(D)) v: q [B, H, N, D], k and v [B, H, L, D] float -> [B, N, H, D].

    integers: allow our own kernel, for fp32, if it can be compiled. It multiplies integers of 14 to 16 bits, which is
        as exact as fp16 q, k, v and weights, and has no derivative. Everything else, and what needs gradients, uses
        PyTorch's attention.
    """
    needs_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    library = compiled.library() if integers and not needs_gradient and _takes(q, k, v) else None
    if library is None:
        return attend_by_pytorch(q, k, v).transpose(1, 2)
    batch, heads, tokens, dim = q.shape
    out = q.new_empty(batch, tokens, heads, dim)
    sizes = (batch, heads, tokens, k.shape[2], dim)
    note(library.name)
    compiled.call("vi_attention", q, k, v, out, *sizes, *q.stride()[:3], *k.stride()[:3])
    return out


def _takes(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether our kernel supports these tensors: fp32, not empty, keys and values with the same layout, and the
    channels of a head contiguous.
    """
    alike = k.shape == v.shape and k.stride() == v.stride() and all(x.dtype == torch.float32 for x in (q, k, v))
    fits = all(x.device.type == "cpu" and x.numel() > 0 and x.stride(3) == 1 for x in (q, k))
    return alike and fits and q.shape[3] <= _MAX_HEAD_DIM
