"""Weight-only linear in Triton for few rows: the camera head, where M is the number of frames.

There the weight's bytes are the whole cost, and int8 halves them. Codes are exact as fp16 or bf16, products
add up in fp32, and the scale goes on the sum. Programs take few outputs each, so that all multiprocessors
pull on memory.
"""

# mypy: allow-untyped-defs
# (Triton kernels have no Python types.)

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from vggt_int8.kernels.weight_only import dequantize

MAX_ROWS = 64  # up to so many rows the kernel reads the int8 weight itself


@triton.jit(do_not_specialize=["M"])
def _weight_only_kernel(
    p_x, p_w, p_w_scale, p_bias, p_out, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    o_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_m = tl.arange(0, BLOCK_M)
    o_k = tl.arange(0, BLOCK_K)
    m_m, m_n = o_m < M, o_n < N
    p_a = p_x + o_m.to(tl.int64)[:, None] * K + o_k[None, :]
    p_b = p_w + o_n.to(tl.int64)[None, :] * K + o_k[:, None]
    b_acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for i in range(tl.cdiv(K, BLOCK_K)):
        m_k = o_k + i * BLOCK_K < K
        b_b = tl.load(p_b, mask=m_k[:, None] & m_n[None, :], other=0)
        b_a = tl.load(p_a, mask=m_m[:, None] & m_k[None, :], other=0.0)
        b_acc = tl.dot(b_a, b_b.to(b_a.dtype), b_acc, input_precision="ieee")
        p_a += BLOCK_K
        p_b += BLOCK_K
    y = b_acc * tl.load(p_w_scale + o_n, mask=m_n, other=0.0)[None, :]
    if p_bias is not None:
        y += tl.load(p_bias + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]
    p_y = p_out + o_m.to(tl.int64)[:, None] * N + o_n[None, :]
    tl.store(p_y, y.to(p_out.dtype.element_ty), mask=m_m[:, None] & m_n[None, :])


def w8a16_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """`reference.w8a16_linear` on the GPU; x and weight contiguous."""
    (m, k), n = x.shape, weight.shape[0]
    if m > MAX_ROWS:
        return F.linear(x, dequantize(weight, weight_scale, x.dtype), None if bias is None else bias.to(x.dtype))
    out = torch.empty(m, n, device=x.device, dtype=x.dtype)
    if m == 0:
        return out
    block_m = max(16, triton.next_power_of_2(m))
    block_n, block_k = (16, 256) if block_m <= 32 else (32, 128)
    grid = (triton.cdiv(n, block_n),)
    _weight_only_kernel[grid](
        *(x, weight, weight_scale, bias, out, m, n, k),
        BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, num_warps=4, num_stages=6 if block_m <= 32 else 4,
    )  # fmt: skip
    return out
