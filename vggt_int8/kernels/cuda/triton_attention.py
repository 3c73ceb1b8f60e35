"""Attention in Triton.

A program owns BLOCK_M of the N queries of one head and iterates over the L keys, BLOCK_N at a time. Scores are never
written to memory: the softmax is computed online, in powers of two, with sums in fp32. The block of keys that the end
of the sequence may cut off comes first, so that the loop needs no mask.

At head dim 64 there is one exponential per 256 floating-point operations. Hopper's tensor cores need as long for those
as its special-function units need for the exponential, so the work between the two products is decisive. Hence the
options in `Variant`. Names in kernels: p_ pointer, i_ index, o_ offset, m_ mask, b_ block of values.
"""

# mypy: allow-untyped-defs
# (Triton kernels have no Python types.)

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from vggt_int8.kernels import attended
from vggt_int8.kernels.cuda.attention_variants import AGAIN, Variant, attention_variant
from vggt_int8.kernels.cuda.launch import launch
from vggt_int8.kernels.cuda.triton_gemm import to_codes
from vggt_int8.kernels.reference import static_scales
from vggt_int8.machine import architecture

# Gluon changes between versions; its kernel has been compiled with these.
GLUON = triton.__version__.startswith(("3.6.", "3.7."))


@triton.jit
def _dot(a, b, acc):
    """fp16 and bf16 operands as they are, fp32 ones as three products of 11-bit parts."""
    if a.dtype == tl.float32:
        acc = tl.dot(a, b, acc, input_precision="tf32x3")
    else:
        acc = tl.dot(a, b, acc)
    return acc


@triton.jit
def _scores(b_q, b_k):
    """Products of queries and keys, fp32."""
    return _dot(b_q, b_k.T, tl.zeros((b_q.shape[0], b_k.shape[0]), tl.float32))


@triton.jit
def _in_registers(b_q):
    """b_q unchanged. The result of a product is in registers, and is used as an operand from there; a row with inf or
    NaN becomes NaN, as its result does anyway.
    """
    o = tl.arange(0, b_q.shape[1])
    one = tl.where(o[:, None] == o[None, :], 1.0, 0.0).to(b_q.dtype)
    return tl.dot(b_q, one, tl.zeros(b_q.shape, tl.float32)).to(b_q.dtype)


@triton.jit
def _sums(b_p):
    """Weights [M, N] -> [M, 4]: the partial sums of the four threads of a row."""
    b_part = b_p.reshape([b_p.shape[0], b_p.shape[1] // 8, 4, 2])
    return tl.sum(tl.sum(b_part, axis=3), axis=1)


@triton.jit
def _load_rows(
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


@triton.jit
def _attend(
    b_q, scale, k, v, at_k, at_v, i_b, i_h, i_own, stride_k, stride_v, L,
    D: tl.constexpr, DIM: tl.constexpr, BLOCK_N: tl.constexpr, TMA: tl.constexpr, FROZEN: tl.constexpr,
):  # fmt: skip
    """Queries b_q [M, DIM], located at i_own among the L keys -> weighted sums of the values [M, DIM], sums of the
    weights [M].

    Sums of weights stay in their threads until the end, and are computed before waiting for values, where exponentials
    hide them.

    FROZEN: subtract from the scores not their running maximum, but the maximum over three places where large scores are
    likely: the end, the beginning, and the queries' own position. Weights may grow to 2^16 (fp16) or 2^127 before the
    result becomes inf or NaN, and the largest is at least 1, so none is less exact than with the true maximum.
    """
    last = tl.cdiv(L, BLOCK_N) - 1
    b_k = _load_rows(k, at_k, i_b, i_h, last * BLOCK_N, stride_k, L, BLOCK_N, D, DIM, TMA, True)
    b_v = _load_rows(v, at_v, i_b, i_h, last * BLOCK_N, stride_v, L, BLOCK_N, D, DIM, TMA, True)
    m_n = last * BLOCK_N + tl.arange(0, BLOCK_N) < L
    b_s = tl.where(m_n[None, :], _scores(b_q, b_k), float("-inf"))
    b_max = tl.max(b_s, axis=1) * scale
    if FROZEN:
        for i in range(tl.where(last > 0, b_q.shape[0] // BLOCK_N + 1, 0)):
            i_block = tl.where(i == 0, 0, tl.minimum(i_own // BLOCK_N + i - 1, last - 1))
            b_k = _load_rows(k, at_k, i_b, i_h, i_block * BLOCK_N, stride_k, L, BLOCK_N, D, DIM, TMA, False)
            b_max = tl.maximum(b_max, tl.max(_scores(b_q, b_k), axis=1) * scale)
    b_p = tl.exp2(b_s * scale - b_max[:, None])
    b_sum = _sums(b_p)
    b_acc = _dot(b_p.to(b_v.dtype), b_v, tl.zeros((b_q.shape[0], DIM), tl.float32))
    for i in range(last):
        b_k = _load_rows(k, at_k, i_b, i_h, i * BLOCK_N, stride_k, L, BLOCK_N, D, DIM, TMA, False)
        b_s = _scores(b_q, b_k)
        if not FROZEN:
            b_new = tl.maximum(b_max, tl.max(b_s, axis=1) * scale)
            b_shrink = tl.exp2(b_max - b_new)
            b_sum *= b_shrink[:, None]
            b_acc *= b_shrink[:, None]
            b_max = b_new
        b_p = tl.exp2(b_s * scale - b_max[:, None])
        b_sum += _sums(b_p)
        b_v = _load_rows(v, at_v, i_b, i_h, i * BLOCK_N, stride_v, L, BLOCK_N, D, DIM, TMA, False)
        b_acc = _dot(b_p.to(b_v.dtype), b_v, b_acc)
    return b_acc, tl.sum(b_sum, axis=1)


@triton.jit
def _store_codes(y, wrong, o_row, m_row, m_d, p_y, p_row_scale, p_out_scale, SCALES):
    """Store rows y [BLOCK_M, DIM] of one head as codes under static scales. p_row_scale already holds the scales, for
    all heads: the scale of a row with NaN or inf, which only occurs in `wrong` tiles, is set to NaN.
    """
    b_scale = tl.load(p_out_scale + o_row % SCALES)
    tl.store(p_y, to_codes(y * (1.0 / b_scale)[:, None]), mask=m_row[:, None] & m_d[None, :])
    if wrong:
        b_poison = tl.sum(y * 0.0, axis=1)
        tl.store(p_row_scale + o_row, b_poison, mask=m_row & (b_poison != b_poison))


@triton.jit(do_not_specialize=["N", "L", "SCALES"])
def _attention_kernel(
    q, k, v, p_out, p_row_scale, p_out_scale, SCALES, p_only, N, L, H, scale,
    stride_q_b, stride_q_h, stride_q, stride_k_b, stride_k_h, stride_k, stride_v_b, stride_v_h, stride_v,
    D: tl.constexpr, DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    TMA: tl.constexpr, FROZEN: tl.constexpr, REGISTERS: tl.constexpr,
):  # fmt: skip
    """q [B, H, N, D], k and v [B, H, L, D]: pointers or descriptors -> out [B, N, H, D], floats, or codes if
    p_out_scale is given. p_only: programs whose flag is 0 return immediately.
    """
    if p_only is not None and tl.load(p_only + tl.program_id(0)) == 0:
        return
    tiles = tl.cdiv(N, BLOCK_M)
    i_head = tl.program_id(0) // tiles  # programs side by side share keys and values in the L2 cache
    i_m = tl.program_id(0) % tiles * BLOCK_M
    i_b, i_h = i_head // H, i_head % H
    at_q = i_b.to(tl.int64) * stride_q_b + i_h.to(tl.int64) * stride_q_h
    at_k = i_b.to(tl.int64) * stride_k_b + i_h.to(tl.int64) * stride_k_h
    at_v = i_b.to(tl.int64) * stride_v_b + i_h.to(tl.int64) * stride_v_h
    o_m, o_d = i_m + tl.arange(0, BLOCK_M), tl.arange(0, DIM)
    b_q = _load_rows(q, at_q, i_b, i_h, i_m, stride_q, N, BLOCK_M, D, DIM, TMA, True)
    if REGISTERS:
        b_q = _in_registers(b_q)
    i_own = (i_m.to(tl.int64) * L // N).to(tl.int32)
    b_acc, b_sum = _attend(
        b_q, scale, k, v, at_k, at_v, i_b, i_h, i_own, stride_k, stride_v, L, D, DIM, BLOCK_N, TMA, FROZEN,
    )  # fmt: skip
    wrong = 1
    if FROZEN:
        m_finite = (tl.abs(b_acc) < float("inf")) & (b_sum < float("inf"))[:, None]
        wrong = tl.max(tl.max(tl.where(m_finite, 0, 1), axis=1), axis=0)
        if wrong:  # scores grew by more than fp16 holds, or an operand is not finite: once more, safely
            b_acc, b_sum = _attend(
                b_q, scale, k, v, at_k, at_v, i_b, i_h, i_own, stride_k, stride_v, L, D, DIM, BLOCK_N, TMA, False,
            )  # fmt: skip
    y = b_acc / b_sum[:, None]
    o_row, m_row, m_d = i_b.to(tl.int64) * N + o_m, o_m < N, o_d < D
    p_y = p_out + (o_row[:, None] * H + i_h) * D + o_d[None, :]
    if p_out_scale is not None:
        _store_codes(y, wrong, o_row, m_row, m_d, p_y, p_row_scale, p_out_scale, SCALES)
    else:
        tl.store(p_y, y.to(p_out.dtype.element_ty), mask=m_row[:, None] & m_d[None, :])


def float_attention(q: Tensor, k: Tensor, v: Tensor, variant: Variant | None = None) -> Tensor:
    """`reference_attention.float_attention` on the GPU. variant: None for the table's choice for this GPU and
    length.
    """
    return _attention(q, k, v, variant)


def float_attention_quantize(
    q: Tensor, k: Tensor, v: Tensor, out_scale: Tensor, variant: Variant | None = None
) -> tuple[Tensor, Tensor]:
    """`reference_attention.float_attention_quantize` on the GPU, without rounding the results first."""
    row_scale = static_scales(out_scale, q.shape[0] * q.shape[2])
    return _attention(q, k, v, variant, row_scale=row_scale, out_scale=out_scale).flatten(0, 1), row_scale


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    variant: Variant | None,
    row_scale: Tensor | None = None,
    out_scale: Tensor | None = None,
) -> Tensor:
    (batch, heads, tokens, dim), keys = q.shape, k.shape[2]
    dtype = v.dtype if out_scale is None else torch.int8
    out = torch.empty(batch, tokens, heads * dim, device=v.device, dtype=dtype)
    if out.numel() == 0:
        return out
    operands: tuple[Any, ...] = tuple(x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    strides = [stride for x in operands for stride in x.stride()[:3]]
    tma = _padded_dim(dim) == dim and not any(stride * v.element_size() % 16 for stride in strides)
    variant = variant or attention_variant(architecture(v.device), keys, dim, v.dtype, tma and GLUON)
    attended.note(variant.kernel)
    only = None
    if variant.grouped:
        if not tma or dim != 64:
            raise ValueError(f"{variant} takes a head dim of 64 and strides of whole 16 bytes, not {dim} and {strides}")
        from vggt_int8.kernels.cuda.gluon_attention import grouped_attention  # which other versions could not import

        only, variant = grouped_attention(operands, out, variant, out_scale), AGAIN
    grid = (triton.cdiv(tokens, variant.block_m) * batch * heads,)
    scales = 1 if out_scale is None else out_scale.numel()
    results = (out, row_scale, out_scale, scales, only)
    rest = (tokens, keys, heads, math.log2(math.e) * dim**-0.5)
    shared: dict[str, Any] = {
        "D": dim, "BLOCK_M": variant.block_m, "BLOCK_N": variant.block_n, "num_warps": variant.warps,
    }  # fmt: skip
    if variant.registers:
        shared["maxnreg"] = 128  # sixteen warps of a multiprocessor share 64 K
    if tma and variant.tma:
        blocks = (variant.block_m, variant.block_n, variant.block_n)
        operands = tuple(
            TensorDescriptor(x, list(x.shape), list(x.stride()), [1, 1, rows, dim])
            for x, rows in zip(operands, blocks, strict=True)
        )
    launch(
        *(_attention_kernel, grid, *operands, *results, *rest, *strides),
        **shared, DIM=_padded_dim(dim), TMA=tma and variant.tma, FROZEN=variant.frozen, REGISTERS=variant.registers,
        num_stages=variant.stages,
    )  # fmt: skip
    return out


def _padded_dim(dim: int) -> int:
    """The head dim inside a program: a power of two, at least 32."""
    return max(32, triton.next_power_of_2(dim))
