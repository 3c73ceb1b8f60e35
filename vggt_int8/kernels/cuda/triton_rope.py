"""q/k LayerNorm, if there is one, and 2-D RoPE in Triton: one pass, in place, over the output of the qkv linear.

The linear writes [T, 3, H, D]. Queries and keys are normalized and rotated in place, and values are not touched, so
attention reads three strided views of that one tensor and nothing is copied. (In place moves 4/3 of the tensor's bytes;
separate q, k, v would move 2.) Queries only, [T, 1, H, D], or keys and values, [T, 2, H, D], use the same kernel with
other parameters.
"""

# mypy: allow-untyped-defs
# (Triton kernels have no Python types.)

import triton
import triton.language as tl
from torch import Tensor

from vggt_int8.kernels.cuda.launch import launch

_TOKENS = 2  # per program


@triton.jit
def _norm_weight(p_q, p_k, o_d, m_row, m_d):
    """[R, D/4] of the q or the k norm's parameter, depending on whether a row is a query (m_row)."""
    b_q = tl.load(p_q + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_k = tl.load(p_k + o_d, mask=m_d, other=0.0).to(tl.float32)
    return tl.where(m_row[:, None], b_q[None, :], b_k[None, :])


@triton.jit
def _turn(a, b, cos, sin, p_a, p_b, mask):
    """Rotate the channel pairs (a, b) and store them."""
    tl.store(p_a, (a * cos - b * sin).to(p_a.dtype.element_ty), mask=mask)
    tl.store(p_b, (b * cos + a * sin).to(p_b.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["T", "P"])
def _norm_rope_kernel(
    p_qkv, p_q_weight, p_q_bias, p_k_weight, p_k_bias, p_rope, T, P, eps,
    H: tl.constexpr, D: tl.constexpr, PARTS: tl.constexpr, TURNED: tl.constexpr,
    ROWS: tl.constexpr, QUARTER: tl.constexpr, APART: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """A row is one head of one token in the first TURNED of PARTS tensors [T, PARTS, H, D]: TURNED * H adjacent rows
    per token. A row is processed as four quarters: RoPE pairs a quarter with another one APART channels from it, once
    for the angles of the image row and once for those of the column.
    """
    o_row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    o_token, o_head = o_row // (TURNED * H), o_row % (TURNED * H)
    o_d = tl.arange(0, QUARTER)
    m_d = o_d < D // 4
    mask = (o_token < T)[:, None] & m_d[None, :]
    p_0 = p_qkv + (o_token * (PARTS * H * D) + o_head * D)[:, None] + o_d[None, :]
    q_1: tl.constexpr = APART
    q_2: tl.constexpr = 3 * D // 4 - APART  # D // 2 or D // 4: where the second pair begins
    q_3: tl.constexpr = 3 * D // 4
    p_1, p_2, p_3 = p_0 + q_1, p_0 + q_2, p_0 + q_3
    x_0 = tl.load(p_0, mask=mask, other=0.0).to(tl.float32)
    x_1 = tl.load(p_1, mask=mask, other=0.0).to(tl.float32)
    x_2 = tl.load(p_2, mask=mask, other=0.0).to(tl.float32)
    x_3 = tl.load(p_3, mask=mask, other=0.0).to(tl.float32)
    if NORM:
        mean = tl.sum(x_0 + x_1 + x_2 + x_3, axis=1)[:, None] / D
        x_0, x_1 = tl.where(mask, x_0 - mean, 0.0), tl.where(mask, x_1 - mean, 0.0)
        x_2, x_3 = tl.where(mask, x_2 - mean, 0.0), tl.where(mask, x_3 - mean, 0.0)
        rstd = tl.rsqrt(tl.sum(x_0 * x_0 + x_1 * x_1 + x_2 * x_2 + x_3 * x_3, axis=1)[:, None] / D + eps)
        query = o_head < H
        x_0 = x_0 * rstd * _norm_weight(p_q_weight, p_k_weight, o_d, query, m_d)
        x_0 += _norm_weight(p_q_bias, p_k_bias, o_d, query, m_d)
        x_1 = x_1 * rstd * _norm_weight(p_q_weight + q_1, p_k_weight + q_1, o_d, query, m_d)
        x_1 += _norm_weight(p_q_bias + q_1, p_k_bias + q_1, o_d, query, m_d)
        x_2 = x_2 * rstd * _norm_weight(p_q_weight + q_2, p_k_weight + q_2, o_d, query, m_d)
        x_2 += _norm_weight(p_q_bias + q_2, p_k_bias + q_2, o_d, query, m_d)
        x_3 = x_3 * rstd * _norm_weight(p_q_weight + q_3, p_k_weight + q_3, o_d, query, m_d)
        x_3 += _norm_weight(p_q_bias + q_3, p_k_bias + q_3, o_d, query, m_d)
    # Both quarters of a pair have the same angle, so each needs only a quarter of the cosines.
    p_cos = p_rope + (o_token % P * D)[:, None] + o_d[None, :]
    p_sin = p_cos + P.to(tl.int64) * D
    _turn(x_0, x_1, tl.load(p_cos, mask=mask), tl.load(p_sin, mask=mask), p_0, p_1, mask)
    p_cos, p_sin = p_cos + q_2, p_sin + q_2
    _turn(x_2, x_3, tl.load(p_cos, mask=mask), tl.load(p_sin, mask=mask), p_2, p_3, mask)


def qk_norm_rope_(
    qkv: Tensor,
    q_weight: Tensor | None,
    q_bias: Tensor | None,
    k_weight: Tensor | None,
    k_bias: Tensor | None,
    rope: Tensor,
    eps: float,
    rotate_half: bool = False,
) -> None:
    """`reference.qk_norm_rope`, written into qkv [T, 3, H, D] contiguous. rope [2, P, D]: see there."""
    _turn_first(2, qkv, (q_weight, q_bias, k_weight, k_bias), rope, eps, rotate_half)


def norm_rope_(x: Tensor, weight: Tensor, bias: Tensor, rope: Tensor, eps: float) -> None:
    """`reference.norm_rope`, written into x [T, n, H, D] contiguous."""
    _turn_first(1, x, (weight, bias, weight, bias), rope, eps)


def _turn_first(
    turned: int, x: Tensor, norms: tuple[Tensor | None, ...], rope: Tensor, eps: float, rotate_half: bool = False
) -> None:
    """Normalize and rotate the first `turned` entries of x [T, n, H, D]."""
    tokens, parts, heads, dim = x.shape
    if tokens == 0:
        return
    rows = triton.next_power_of_2(turned * heads * _TOKENS)
    launch(
        *(_norm_rope_kernel, (triton.cdiv(tokens * turned * heads, rows),)),
        *(x, *(rope if norm is None else norm for norm in norms), rope, tokens, rope.shape[1], eps),
        H=heads, D=dim, PARTS=parts, TURNED=turned, ROWS=rows, QUARTER=triton.next_power_of_2(dim // 4),
        APART=dim // (2 if rotate_half else 4), NORM=norms[0] is not None, num_warps=4,
    )  # fmt: skip
