"""Queries and keys as INT8 codes, in Triton: what INT8 attention reads.

Two passes: the sums of each head's keys, then codes and scales of both. They read strided views of the qkv tensor and
write heads one after another, padded by zeros to whole blocks, so that attention masks neither.
"""

# mypy: allow-untyped-defs
# (Triton kernels have no Python types.)

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vggt_int8.kernels.cuda.launch import launch
from vggt_int8.kernels.cuda.triton_gemm import to_codes
from vggt_int8.kernels.reference_attention import KEY_GROUP


@triton.jit
def load_rows(
    x, at, i_b, i_h, i_row, stride, N,
    BLOCK: tl.constexpr, D: tl.constexpr, DIM: tl.constexpr, TMA: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Rows i_row ... of one head -> [BLOCK, DIM], zeros outside of [N, D]. at: of the head, from the pointer x."""
    if TMA:
        b_x = x.load([i_b, i_h, i_row, 0]).reshape([BLOCK, DIM])
    else:
        o_row, o_d = tl.arange(0, BLOCK), tl.arange(0, DIM)
        p_x = x + (at + tl.cast(i_row, tl.int64) * stride) + (o_row[:, None] * stride + o_d[None, :])
        mask = (o_d < D)[None, :]
        if MASKED:
            b_x = tl.load(p_x, mask=mask & (i_row + o_row < N)[:, None], other=0)
        elif D == DIM:
            b_x = tl.load(p_x)
        else:
            b_x = tl.load(p_x, mask=mask, other=0)
    return b_x


@triton.jit(do_not_specialize=["N"])
def _key_sums_kernel(
    p_k, p_sums, N, H, stride_b, stride_h, stride,
    D: tl.constexpr, DIM: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums of the keys of one head, by PARTS programs with a piece of the sequence each -> sums [B * H, PARTS, DIM]."""
    i_head, i_part = tl.program_id(0) // PARTS, tl.program_id(0) % PARTS
    at = (i_head // H).to(tl.int64) * stride_b + (i_head % H).to(tl.int64) * stride_h
    b_sum = tl.zeros((BLOCK, DIM), tl.float32)
    for i in range(i_part, tl.cdiv(N, BLOCK), PARTS):
        b_sum += load_rows(p_k, at, 0, 0, i * BLOCK, stride, N, BLOCK, D, DIM, False, True).to(tl.float32)
    tl.store(p_sums + tl.program_id(0).to(tl.int64) * DIM + tl.arange(0, DIM), tl.sum(b_sum, axis=0))


@triton.jit(do_not_specialize=["N"])
def _quantize_kernel(
    p_q, p_k, p_sums, p_q_codes, p_k_codes, p_q_scale, p_k_scale, N, H, stride_b, stride_h, stride,
    D: tl.constexpr, DIM: tl.constexpr, PARTS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One group of tokens of one head: queries -> codes and a scale per token, keys less their mean -> one scale.

    Codes lie in [B, H, groups * GROUP, DIM], zeros past the end of sequence and head dim.
    """
    groups = tl.cdiv(N, GROUP)
    i_head, i_group = tl.program_id(0) // groups, tl.program_id(0) % groups
    i_head64 = i_head.to(tl.int64)
    at = (i_head // H).to(tl.int64) * stride_b + (i_head % H).to(tl.int64) * stride_h
    o_n, o_d, o_part = i_group * GROUP + tl.arange(0, GROUP), tl.arange(0, DIM), tl.arange(0, PARTS)
    o_code = (tl.program_id(0).to(tl.int64) * GROUP + tl.arange(0, GROUP))[:, None] * DIM + o_d[None, :]
    x = load_rows(p_q, at, 0, 0, i_group * GROUP, stride, N, GROUP, D, DIM, False, True).to(tl.float32)
    absmax = tl.max(tl.abs(x), axis=1)
    # Below 1e-35 the reciprocal would overflow: such rows become zeros. NaN and inf make the scale NaN.
    inverse = tl.where(absmax > 1e-35, 127.0 / absmax, 0.0)
    scale = tl.where(absmax > 0.0, absmax / 127.0, 1.0) + tl.sum(x * 0.0, axis=1)
    tl.store(p_q_codes + o_code, to_codes(x * inverse[:, None]))
    tl.store(p_q_scale + i_head64 * N + o_n, scale, mask=o_n < N)
    p_parts = p_sums + (i_head64 * PARTS + o_part)[:, None] * DIM + o_d[None, :]
    mean = tl.sum(tl.load(p_parts), axis=0) / N
    x = load_rows(p_k, at, 0, 0, i_group * GROUP, stride, N, GROUP, D, DIM, False, True).to(tl.float32)
    x = tl.where((o_n < N)[:, None], x - mean[None, :], 0.0)
    absmax = tl.max(tl.max(tl.abs(x), axis=1), axis=0)
    inverse = tl.where(absmax > 1e-35, 127.0 / absmax, 0.0)
    poison = tl.sum(tl.sum(x * 0.0, axis=1), axis=0)
    tl.store(p_k_codes + o_code, to_codes(x * inverse))
    tl.store(p_k_scale + tl.program_id(0), tl.where(absmax > 0.0, absmax / 127.0, 1.0) + poison)


def quantize_queries_and_keys(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`reference_attention.quantize_queries_and_keys`, with codes [B, H, groups * KEY_GROUP, DIM] padded by zeros."""
    q, k = alike(q, k)
    batch, heads, tokens, dim = q.shape
    groups, padded = triton.cdiv(tokens, KEY_GROUP), padded_dim(dim)
    parts = 4 if tokens < 16_384 else 32  # programs that share the mean of one head's keys
    sums = q.new_empty(batch * heads, parts, padded, dtype=torch.float32)
    codes = q.new_empty(2, batch, heads, groups * KEY_GROUP, padded, dtype=torch.int8)
    q_scale = q.new_empty(batch, heads, tokens, dtype=torch.float32)
    k_scale = q.new_empty(batch, heads, groups, dtype=torch.float32)
    if q.numel():
        shape: dict[str, Any] = {"D": dim, "DIM": padded, "PARTS": parts, "num_warps": 4}
        rest = (tokens, heads, *k.stride()[:3])
        launch(_key_sums_kernel, (batch * heads * parts,), k, sums, *rest, BLOCK=KEY_GROUP, **shape)
        operands = (q, k, sums, codes[0], codes[1], q_scale, k_scale)
        launch(_quantize_kernel, (batch * heads * groups,), *operands, *rest, GROUP=KEY_GROUP, **shape)
    return codes[0], q_scale, codes[1], k_scale


def padded_dim(dim: int) -> int:
    """The head dim that a program works on: integer products take 32 at a time."""
    return max(32, triton.next_power_of_2(dim))


def alike(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Both with the same strides and channels side by side; views of one qkv tensor are, and are not copied."""
    if q.stride() == k.stride() and q.stride(-1) == 1:
        return q, k
    return q.contiguous(), k.contiguous()
