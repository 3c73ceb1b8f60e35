"""Attention on a CPU: once the linears of a block multiply integers, it takes as long as all of them."""

import torch.nn.functional as F
from torch import Tensor

from vggt_int8.kernels import cpu_compiled


def attention_cpu(q: Tensor, k: Tensor, v: Tensor, integers: bool = False) -> Tensor:
    """softmax(q kᵀ / sqrt(D)) v: q, k, v [B, H, N, D] float -> [B, N, H, D].

    `integers` allows our own kernel, for fp32 where it can be compiled: integers of 14 to 16 bits, with which the
    result is as exact as with all of q, k, v and the weights in fp16. Everything else is PyTorch's attention.
    """
    if integers and cpu_compiled.takes_attention(q, k, v):
        return cpu_compiled.attention(q, k, v)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
