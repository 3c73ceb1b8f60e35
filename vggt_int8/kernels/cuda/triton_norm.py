"""Row-wise passes in Triton: LayerNorm to INT8 codes, and per-token quantization by itself.

Each reads a row once, keeps it in registers and writes one byte per channel, so its cost is its memory traffic: 3 bytes
per channel for fp16 LayerNorm to codes, against 4 for the LayerNorm and 3 for a separate quantization.
"""

# mypy: allow-untyped-defs
# (Triton kernels have no Python types.)

import torch
import triton
import triton.language as tl
from torch import Tensor

from vggt_int8.kernels.cuda.launch import launch
from vggt_int8.kernels.cuda.triton_gemm import to_codes
from vggt_int8.kernels.cuda.triton_rotate import rotation_factor, steps, sums_and_differences

_TILE = 4096  # values per program: eight 16-byte loads in flight for each of 128 threads
# For rotated rows, measured on an H200 for 1024 and 4096 channels at 1041 and 10410 rows: with fewer threads, more of
# the values that are combined are in the same thread.
_ROTATED_TILE, _ROTATED_THREAD = 1024, 64


@triton.jit
def _store_codes(y, b_poison, p_codes, p_scale, p_input_scale, SCALES, o_row, o_k, m_row, mask, K):
    """Rows y [R, K] fp32 -> codes and scales. b_poison [R] is 0, or NaN for a row with NaN or inf."""
    if p_input_scale is None:
        absmax = tl.max(tl.abs(y), axis=1)
        # Below 1e-35 the reciprocal would overflow: such rows become zeros.
        inverse = tl.where(absmax > 1e-35, 127.0 / absmax, 0.0)
        scale = tl.where(absmax > 0.0, absmax / 127.0, 1.0)
        b_codes = to_codes(y * inverse[:, None])
    else:
        scale = tl.load(p_input_scale + o_row % SCALES)
        b_codes = to_codes(y * (1.0 / scale)[:, None])
    tl.store(p_codes + o_row.to(tl.int64)[:, None] * K + o_k[None, :], b_codes, mask=mask)
    tl.store(p_scale + o_row, scale + b_poison, mask=m_row)


@triton.jit(do_not_specialize=["M", "SCALES"])
def _layer_norm_kernel(
    p_x, p_weight, p_bias, p_codes, p_scale, p_input_scale, SCALES, M, eps,
    K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    o_row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_k = tl.arange(0, BLOCK_K)
    m_row, m_k = o_row < M, o_k < K
    mask = m_row[:, None] & m_k[None, :]
    o_x = o_row.to(tl.int64)[:, None] * K + o_k[None, :]
    x = tl.load(p_x + o_x, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(x, axis=1) / K
    x = tl.where(mask, x - mean[:, None], 0.0)
    variance = tl.sum(x * x, axis=1) / K
    y = x * tl.rsqrt(variance + eps)[:, None]
    y = y * tl.load(p_weight + o_k, mask=m_k, other=0.0).to(tl.float32)[None, :]
    y += tl.load(p_bias + o_k, mask=m_k, other=0.0).to(tl.float32)[None, :]
    poison = tl.sum(tl.where(mask, y * 0.0, 0.0), axis=1)
    if STEPS > 0:
        y = sums_and_differences(tl.where(mask, y, 0.0) * rotation_factor(STEPS), BLOCK_M, BLOCK_K, STEPS, False)
    _store_codes(y, poison, p_codes, p_scale, p_input_scale, SCALES, o_row, o_k, m_row, mask, K)


@triton.jit(do_not_specialize=["M", "SCALES"])
def _quantize_kernel(
    p_x, p_codes, p_scale, p_input_scale, SCALES, M,
    K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    o_row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_k = tl.arange(0, BLOCK_K)
    m_row, m_k = o_row < M, o_k < K
    mask = m_row[:, None] & m_k[None, :]
    x = tl.load(p_x + o_row.to(tl.int64)[:, None] * K + o_k[None, :], mask=mask, other=0.0).to(tl.float32)
    poison = tl.sum(x * 0.0, axis=1)
    if STEPS > 0:
        x = sums_and_differences(x * rotation_factor(STEPS), BLOCK_M, BLOCK_K, STEPS, False)
    _store_codes(x, poison, p_codes, p_scale, p_input_scale, SCALES, o_row, o_k, m_row, mask, K)


@triton.jit(do_not_specialize=["M"])
def _rotate_kernel(
    p_x, p_out, M, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    o_row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_k = tl.arange(0, BLOCK_K)
    mask = (o_row < M)[:, None] & (o_k < K)[None, :]
    o_x = o_row.to(tl.int64)[:, None] * K + o_k[None, :]
    x = tl.load(p_x + o_x, mask=mask, other=0.0).to(tl.float32) * rotation_factor(STEPS)
    y = sums_and_differences(x, BLOCK_M, BLOCK_K, STEPS, False)
    tl.store(p_out + o_x, y.to(p_out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["ROWS", "P", "SKIP"])
def _layer_norm_halves_kernel(
    p_first, p_second, p_weight, p_bias, p_out, ROWS, P, SKIP, eps,
    C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    o_row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_c = tl.arange(0, BLOCK_C)
    m_c = o_c < C
    mask = (o_row < ROWS)[:, None] & m_c[None, :]
    kept = P - SKIP
    o_token = (o_row // kept).to(tl.int64) * P + o_row % kept + SKIP
    o_x = o_token[:, None] * C + o_c[None, :]
    a = tl.load(p_first + o_x, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(p_second + o_x, mask=mask, other=0.0).to(tl.float32)
    mean = (tl.sum(a + b, axis=1) / (2 * C))[:, None]
    a, b = tl.where(mask, a - mean, 0.0), tl.where(mask, b - mean, 0.0)
    rstd = tl.rsqrt(tl.sum(a * a + b * b, axis=1) / (2 * C) + eps)[:, None]
    a = a * rstd * tl.load(p_weight + o_c, mask=m_c, other=0.0).to(tl.float32)[None, :]
    a += tl.load(p_bias + o_c, mask=m_c, other=0.0).to(tl.float32)[None, :]
    b = b * rstd * tl.load(p_weight + C + o_c, mask=m_c, other=0.0).to(tl.float32)[None, :]
    b += tl.load(p_bias + C + o_c, mask=m_c, other=0.0).to(tl.float32)[None, :]
    p_y = p_out + o_row.to(tl.int64)[:, None] * (2 * C) + o_c[None, :]
    tl.store(p_y, a.to(p_out.dtype.element_ty), mask=mask)
    tl.store(p_y + C, b.to(p_out.dtype.element_ty), mask=mask)


def layer_norm_quantize(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, input_scale: Tensor | None = None, rotation: int = 0
) -> tuple[Tensor, Tensor]:
    """`reference.layer_norm_quantize` in one pass; x [M, C] contiguous."""
    codes, scale = _outputs(x)
    _launch(_layer_norm_kernel, rotation, x, x, weight, bias, codes, scale, *_static(input_scale), x.shape[0], eps)
    return codes, scale


def quantize_rows(x: Tensor, input_scale: Tensor | None = None, rotation: int = 0) -> tuple[Tensor, Tensor]:
    """`reference.quantize_rows` in one pass; x [M, K] contiguous."""
    codes, scale = _outputs(x)
    _launch(_quantize_kernel, rotation, x, x, codes, scale, *_static(input_scale), x.shape[0])
    return codes, scale


def rotate_rows(x: Tensor, rotation: int) -> Tensor:
    """`reference.rotate_rows` in one pass; x [M, K] contiguous."""
    out = torch.empty_like(x)
    _launch(_rotate_kernel, rotation, x, x, out, x.shape[0])
    return out


def layer_norm_halves(first: Tensor, second: Tensor, skip: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`reference.layer_norm_halves` in one pass; first, second [F, P, C] contiguous."""
    frames, tokens, channels = first.shape
    out = torch.empty(frames, tokens - skip, 2 * channels, device=first.device, dtype=first.dtype)
    rows = frames * (tokens - skip)
    if rows == 0:
        return out
    block_c = triton.next_power_of_2(channels)
    block_m = max(1, _TILE // (2 * block_c))
    warps = min(16, max(1, block_m * block_c // 512))
    launch(
        *(_layer_norm_halves_kernel, (triton.cdiv(rows, block_m),)),
        *(first, second, weight, bias, out, rows, tokens, skip, eps),
        C=channels, BLOCK_M=block_m, BLOCK_C=block_c, num_warps=warps,
    )  # fmt: skip
    return out


def _static(scale: Tensor | None) -> tuple[Tensor | None, int]:
    """Static scales and their number."""
    return scale, 1 if scale is None else scale.numel()


def _outputs(x: Tensor) -> tuple[Tensor, Tensor]:
    codes = torch.empty(x.shape, device=x.device, dtype=torch.int8)
    return codes, torch.empty(x.shape[0], 1, device=x.device, dtype=torch.float32)


def _launch(kernel: triton.JITFunction, rotation: int, x: Tensor, *arguments: object) -> None:
    """Launch one program per tile of about `_TILE` values; a row is never split."""
    m, k = x.shape
    if m == 0:
        return
    block_k = triton.next_power_of_2(k)
    tile, per_thread = (_ROTATED_TILE, _ROTATED_THREAD) if rotation else (_TILE, 32)
    block_m = max(1, tile // block_k)
    warps = min(16, max(1, block_m * block_k // (32 * per_thread)))
    grid = (triton.cdiv(m, block_m),)
    launch(kernel, grid, *arguments, K=k, BLOCK_M=block_m, BLOCK_K=block_k, STEPS=steps(rotation), num_warps=warps)
