"""What lies between and around the INT8 linears of a transformer block, on a CPU.

Once the linears run on VNNI, two other things take as long as all of them: attention, and the memory traffic
of the MLP's hidden activations (17 MB in fp32 at 1041 rows, written and read three times and mapped anew for
each block).
"""

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vggt_int8.kernels.cpu import PreparedWeight, cache_slices, row_slices, w8a8_linear_into

SDPA = "scaled_dot_product_attention"
SLICED = "softmax between two oneDNN products"

_QUERY_ROWS = 512  # 2 MB of scores per head at 1041 keys


class Int8Linear(NamedTuple):
    """The operands of `w8a8_linear_cpu` behind x."""

    weight: PreparedWeight
    weight_scale: Tensor
    bias: Tensor | None
    input_scale: Tensor | None = None


def w8a8_mlp_cpu(x: Tensor, fc1: Int8Linear, fc2: Int8Linear) -> Tensor:
    """`fc2(gelu(fc1(x)))`, equal to the three steps one after another. x [M, C] float -> [M, C] in x's dtype."""
    out = x.new_empty(x.shape[0], fc2.weight.codes.shape[0])
    slices = cache_slices(x.shape[0])
    buffer = x.new_empty(slices[0].stop, fc1.weight.codes.shape[0])
    for rows in slices:
        hidden = buffer[: rows.stop - rows.start]
        w8a8_linear_into(hidden, x[rows], *fc1)
        w8a8_linear_into(out[rows], torch.ops.aten.gelu_(hidden), *fc2)
    return out


def attention_cpu(q: Tensor, k: Tensor, v: Tensor, kernel: str | None = None) -> Tensor:
    """softmax(q kᵀ / sqrt(D)) v: q, k, v [B, H, N, D] float -> [B, H, N, D], laid out as [B, N, H, D].

    `kernel` None takes this machine's, `cpu_attention_kernel()`. Both give fp32 accuracy in fp32; SLICED
    serves fp32 alone, and anything else goes to SDPA.
    """
    kernel = kernel or (cpu_attention_kernel() if q.dtype == torch.float32 else SDPA)
    if kernel == SDPA:
        return F.scaled_dot_product_attention(q, k, v)
    batch, heads, tokens, dim = q.shape
    out = q.new_empty(batch, tokens, heads, v.shape[-1]).transpose(1, 2)
    for b in range(batch):
        for h in range(heads):
            keys, values = k[b, h].contiguous(), v[b, h].t().contiguous()
            queries = q[b, h] * dim**-0.5
            for rows in row_slices(tokens, _QUERY_ROWS):
                scores = _product(queries[rows], keys)
                out[b, h, rows] = _product(torch.softmax(scores, dim=-1), values)
    return out


@functools.cache
def cpu_attention_kernel() -> str:
    """The faster way to attention in fp32 on this CPU, measured once.

    PyTorch's own kernel multiplies with MKL, which on some CPUs (AMD's) has half the speed of oneDNN.
    """
    if not torch.backends.mkldnn.is_available():
        return SDPA
    q, k, v = torch.randn(3, 1, 2, 512, 64, generator=torch.Generator().manual_seed(0))
    sliced = _best_of(3, lambda: attention_cpu(q, k, v, SLICED))
    return SLICED if sliced < _best_of(3, lambda: attention_cpu(q, k, v, SDPA)) else SDPA


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """x [M, K] fp32, weight [N, K] fp32 -> x weightᵀ [M, N] through oneDNN."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return product


def _best_of(repeats: int, run: Callable[[], object]) -> float:
    """Seconds of the fastest of some runs, after one that is not counted."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times[1:])
