"""Weight-only linears in Triton: for few rows a product that reads the int8 weight itself, for more a decoder.

Few rows occur in the camera head, where M is the number of frames and the weight's bytes are the whole cost. Codes are
exact in fp16 and bf16, products accumulate in fp32, and the sum is scaled. A single program per tile would wait for its
chain of dependent products (8192 / 16 of them for fc2, 33 cycles each), so several share a reduction; each writes its
part, and the last one to finish adds the parts in a fixed order, so that results are reproducible.

A single row, as for a single frame, has its own kernel: no tile of 16 rows, and no reduction shared among programs.
Each program rotates the row for itself, if requested, while its part of the weight is loaded.

For more rows the weight is decoded to x's dtype first. Values above 65504 become inf in fp16 then, as in a network of
floats; checking for them would take another launch per layer.
"""

# mypy: allow-untyped-defs
# (Triton kernels have no Python types.)

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from vggt_int8.kernels.cuda.launch import launch
from vggt_int8.kernels.cuda.tiles import Tile
from vggt_int8.kernels.cuda.triton_norm import rotate_rows
from vggt_int8.kernels.cuda.triton_rotate import rotation_factor, steps, sums_and_differences
from vggt_int8.machine import processors

MAX_ROWS = 64  # for which the product reads the int8 weight itself
_PER_SM = 2  # programs per multiprocessor that the reduction is split for
# Programs for one row: codes, columns at a time, and warps, measured on an H200 for the camera head. Each program
# rotates the row itself, best in parts (fc2's 8192 columns: 10.2 us, else 17.1); without rotation, whole rows are best
# (7.9 us instead of 9.6).
_ROW_CODES, _ROW_COLUMNS, _ROTATED_COLUMNS, _ROW_WARPS = 16384, 8192, 2048, 8
_DECODED = (8, 256)  # rows and columns of the decoder's programs: one kernel for all sizes


@triton.jit(do_not_specialize=["M", "SPLIT_K"])
def _weight_only_kernel(
    p_x, p_w, p_w_scale, p_bias, p_out, p_parts, p_done, M, N, K, SPLIT_K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    i_n, i_split = tl.program_id(0), tl.program_id(1)
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    o_m = tl.arange(0, BLOCK_M)
    steps = tl.cdiv(tl.cdiv(K, BLOCK_K), SPLIT_K)
    o_k = i_split * steps * BLOCK_K + tl.arange(0, BLOCK_K)
    m_m, m_n = o_m < M, o_n < N
    mask = m_m[:, None] & m_n[None, :]
    p_a = p_x + o_m.to(tl.int64)[:, None] * K + o_k[None, :]
    p_b = p_w + o_n.to(tl.int64)[None, :] * K + o_k[:, None]
    b_acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for i in range(steps):
        m_k = o_k + i * BLOCK_K < K
        b_b = tl.load(p_b, mask=m_k[:, None] & m_n[None, :], other=0)
        b_a = tl.load(p_a, mask=m_m[:, None] & m_k[None, :], other=0.0)
        b_acc = tl.dot(b_a, b_b.to(b_a.dtype), b_acc, input_precision="ieee")
        p_a += BLOCK_K
        p_b += BLOCK_K
    o_y = o_m.to(tl.int64)[:, None] * N + o_n[None, :]
    last = True
    if p_parts is not None:
        part = M.to(tl.int64) * N
        tl.store(p_parts + i_split * part + o_y, b_acc, mask=mask)
        tl.debug_barrier()  # every thread's part is stored before this program counts as done
        last = tl.atomic_add(p_done + i_n, 1, sem="acq_rel") == SPLIT_K - 1
        if last:
            b_acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
            for i in range(SPLIT_K):
                b_acc += tl.load(p_parts + i * part + o_y, mask=mask, other=0.0, cache_modifier=".cg")
    if last:
        y = b_acc * tl.load(p_w_scale + o_n, mask=m_n, other=0.0)[None, :]
        if p_bias is not None:
            y += tl.load(p_bias + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]
        tl.store(p_out + o_y, y.to(p_out.dtype.element_ty), mask=mask)


@triton.jit
def _one_row_kernel(
    p_x, p_w, p_w_scale, p_bias, p_out, N, K,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    o_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_k = tl.arange(0, BLOCK_K)
    m_n = o_n < N
    p_b = p_w + o_n.to(tl.int64)[:, None] * K + o_k[None, :]
    acc = tl.zeros((BLOCK_N,), dtype=tl.float32)
    for k in range(0, K, BLOCK_K):
        m_k = o_k + k < K
        b_b = tl.load(p_b + k, mask=m_n[:, None] & m_k[None, :], other=0)  # comes while the row is rotated
        x = tl.load(p_x + k + o_k, mask=m_k, other=0.0)
        if STEPS > 0:
            turned = tl.reshape(x.to(tl.float32) * rotation_factor(STEPS), (1, BLOCK_K))
            x = tl.reshape(sums_and_differences(turned, 1, BLOCK_K, STEPS, False).to(x.dtype), (BLOCK_K,))
        acc += tl.sum(b_b.to(tl.float32) * x.to(tl.float32)[None, :], axis=1)
    y = acc * tl.load(p_w_scale + o_n, mask=m_n, other=0.0)
    if p_bias is not None:
        y += tl.load(p_bias + o_n, mask=m_n, other=0.0).to(tl.float32)
    tl.store(p_out + o_n, y.to(p_out.dtype.element_ty), mask=m_n)


@triton.jit
def _dequantize_kernel(
    p_w, p_scale, p_out, A, B, T, scale_a, scale_b, BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """[A, B, T] -> [A, T, B]; the scale of (a, b) is at a * scale_a + b * scale_b."""
    o_a = (tl.program_id(0) * BLOCK_A + tl.arange(0, BLOCK_A))[:, None]
    o_b = (tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B))[None, :]
    mask = (o_a < A) & (o_b < B)
    scale = tl.load(p_scale + o_a * scale_a + o_b * scale_b, mask=mask, other=0.0)
    o_in = o_a.to(tl.int64) * B * T + o_b * T
    o_out = o_a.to(tl.int64) * B * T + o_b
    for t in range(T):
        b_codes = tl.load(p_w + o_in + t, mask=mask, other=0)
        tl.store(p_out + o_out + t * B, (b_codes.to(tl.float32) * scale).to(p_out.dtype.element_ty), mask=mask)


def dequantize(weight: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """`reference.dequantize` in one pass; weight contiguous."""
    a, b, t = weight.shape
    out = torch.empty(a, t, b, device=weight.device, dtype=dtype)
    if out.numel() == 0:
        return out
    steps = (int(weight_scale.shape[0] > 1), int(weight_scale.shape[1] > 1))
    grid = (triton.cdiv(a, _DECODED[0]), triton.cdiv(b, _DECODED[1]))
    launch(
        *(_dequantize_kernel, grid, weight, weight_scale, out, a, b, t, *steps),
        BLOCK_A=_DECODED[0], BLOCK_B=_DECODED[1], num_warps=4,
    )  # fmt: skip
    return out


def w8a16_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    rotation: int = 0,
    tile: Tile | None = None,
) -> Tensor:
    """`reference.w8a16_linear` on the GPU; x and weight contiguous. `tile` None: chosen by size."""
    (m, k), n = x.shape, weight.shape[0]
    if m == 1 and tile is None:
        return _one_row(x, weight, weight_scale, bias, rotation)
    x = rotate_rows(x, rotation) if rotation else x
    if m > MAX_ROWS:
        floats = dequantize(weight.unsqueeze(2), weight_scale.view(n, 1, 1), x.dtype).view(n, k)
        return F.linear(x, floats, None if bias is None else bias.to(x.dtype))
    out = torch.empty(m, n, device=x.device, dtype=x.dtype)
    if m == 0:
        return out
    tile = tile or weight_only_tile(m, n, k, processors(x.device), x.dtype == torch.float32)
    columns = triton.cdiv(n, tile.block_n)
    parts = done = None
    if tile.split_k > 1:
        parts = torch.empty(tile.split_k, m, n, device=x.device, dtype=torch.float32)
        done = torch.zeros(columns, device=x.device, dtype=torch.int32)
    launch(
        *(_weight_only_kernel, (columns, tile.split_k), x, weight, weight_scale, bias, out, parts, done, m, n, k),
        tile.split_k, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out


def _one_row(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, rotation: int) -> Tensor:
    n, k = weight.shape
    out = torch.empty(1, n, device=x.device, dtype=x.dtype)
    block_k = min(triton.next_power_of_2(k), _ROTATED_COLUMNS if rotation else _ROW_COLUMNS)
    block_n = _ROW_CODES // block_k
    launch(
        *(_one_row_kernel, (triton.cdiv(n, block_n),), x, weight, weight_scale, bias, out, n, k),
        BLOCK_N=block_n, BLOCK_K=block_k, STEPS=steps(rotation), num_warps=_ROW_WARPS,
    )  # fmt: skip
    return out


def weight_only_tile(m: int, n: int, k: int, multiprocessors: int, fp32: bool = False) -> Tile:
    """Split K until there are about two programs per multiprocessor, but give each at least one whole step.

    Tiles use at most 96 KiB of shared memory, of 99 on Ada; `fp32` rows, and weights as floats, take twice as much.
    """
    block_m = max(16, triton.next_power_of_2(m))
    block_n, block_k, stages = (64, 256, 4) if block_m <= 32 else (64, 128, 3)
    if fp32:
        block_k, stages = (128, 3) if block_m <= 32 else (64, 3)
    wanted = round(_PER_SM * multiprocessors / triton.cdiv(n, block_n))
    split_k = max(1, min(wanted, k // block_k))
    return Tile(block_m, block_n, block_k, warps=4, stages=stages, split_k=split_k)
