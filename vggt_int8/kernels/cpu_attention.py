"""Attention on a CPU: once the linears of a block run on VNNI, it takes as long as all of them."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from vggt_int8.kernels.cpu import clearly_faster, onednn_linear, row_slices

SDPA = "scaled_dot_product_attention"
SLICED = "softmax between two oneDNN products"

_SCORES_AT_ONCE = 1 << 21  # 8 MB, which a third-level cache holds; oneDNN packs the keys anew for each slice of them
_MIN_TOKENS = 512  # below, the calls for every head cost more than they save


def attention_cpu(q: Tensor, k: Tensor, v: Tensor, kernel: str | None = None) -> Tensor:
    """softmax(q kᵀ / sqrt(D)) v: q, k, v [B, H, N, D] float -> [B, H, N, D], laid out as [B, N, H, D].

    `kernel` None takes this machine's, `cpu_attention_kernel()`, for long sequences in fp32; anything else goes
    to SDPA. Both give fp32 accuracy in fp32.
    """
    if kernel is None:
        long = q.dtype == torch.float32 and q.shape[2] >= _MIN_TOKENS
        kernel = cpu_attention_kernel() if long else SDPA
    if kernel == SDPA:
        return F.scaled_dot_product_attention(q, k, v)
    batch, heads, tokens, dim = q.shape
    out = q.new_empty(batch, tokens, heads, v.shape[-1]).transpose(1, 2)
    for b in range(batch):
        for h in range(heads):
            keys, values = k[b, h].contiguous(), v[b, h].t().contiguous()
            queries = q[b, h] * dim**-0.5
            for rows in row_slices(tokens, max(1, _SCORES_AT_ONCE // tokens)):
                scores = onednn_linear(queries[rows], keys)
                out[b, h, rows] = onednn_linear(torch.softmax(scores, dim=-1, out=scores), values)
    return out


@functools.cache
def cpu_attention_kernel() -> str:
    """The way to attention in fp32 on this CPU, measured once: PyTorch's own unless the other is clearly faster.

    PyTorch's own kernel multiplies with MKL, which on some CPUs (AMD's) has half the speed of oneDNN.
    """
    if not torch.backends.mkldnn.is_available():
        return SDPA
    q, k, v = torch.randn(3, 1, 2, 512, 64, generator=torch.Generator().manual_seed(0))
    faster = clearly_faster(lambda: attention_cpu(q, k, v, SLICED), lambda: attention_cpu(q, k, v, SDPA), 1.1)
    return SLICED if faster else SDPA
