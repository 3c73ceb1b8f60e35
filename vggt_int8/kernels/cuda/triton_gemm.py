"""INT8 GEMM in Triton, with everything that follows a linear in its epilogue.

[M, K] x [N, K] -> [M, N]. Both operands have K innermost, as the integer tensor cores require (Hopper's take nothing
else). The sum is exact in int32 registers and is never written to memory as such: scales, bias, GELU, LayerScale and
residual are applied to it in fp32, with one rounding at the end. With static scales, the result is the next linear's
codes, of rotated rows if requested: a tile holds whole groups of them.

Two kernels share the epilogue. The pointer kernel runs on every GPU since Ampere. The descriptor kernel loads tiles
with Hopper's copy engine (TMA), and may be persistent: a few programs iterate over many tiles, so that the operands of
the next tile arrive during the epilogue of the current one. Names in kernels: p_ pointer, d_ tensor descriptor, i_
index, o_ offset, m_ mask, b_ block of values.
"""

# mypy: allow-untyped-defs
# (Triton kernels have no Python types.)

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from vggt_int8.kernels.cuda.launch import launch
from vggt_int8.kernels.cuda.tiles import Size, Tile, codes_tile, gemm_tile
from vggt_int8.kernels.cuda.triton_rotate import rotation_factor, steps, sums_and_differences
from vggt_int8.kernels.epilogue import Epilogue
from vggt_int8.machine import architecture, processors


@triton.jit
def to_codes(y):
    """fp32 -> int8, rounded half to even and clamped; the clamp is one instruction, since its limits differ only in
    sign. Adding 1.5 * 2^23 leaves the integer in the low mantissa bits.
    """
    y = tl.clamp(y, -127.0, 127.0) + 12582912.0
    return y.to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def gelu(x):
    """Exact GELU, x * Phi(x), within 7e-7, as relu(x) - |x| * Phi(-|x|).

    log2 of Phi(-a) is nearly a parabola: it is approximated by a polynomial of degree 5, fitted for the least absolute
    error of the GELU, whose highest coefficient is negative, so that a needs no bound. Seven operations and one `ex2`;
    `tl.erf` takes about four times as many, and so many registers that large tiles spill.
    """
    a = tl.abs(x)
    p = -0.00047330997767858207 * a + 0.007084561511874199
    p = p * a - 0.05182739347219467
    p = p * a - 0.4599924385547638
    p = p * a - 1.1507878303527832
    p = p * a - 1.000037670135498
    return tl.maximum(x, 0.0) - a * tl.exp2(p)


@triton.jit
def _tile_index(i_tile, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """Index of a tile -> its row and column; GROUP_M rows of tiles at a time, to reuse operands in L2."""
    n_m, n_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    i_group = i_tile // (GROUP_M * n_n)
    i_first = i_group * GROUP_M
    group = min(n_m - i_first, GROUP_M)
    i_in_group = i_tile % (GROUP_M * n_n)
    return i_first + i_in_group % group, i_in_group // group


@triton.jit
def _epilogue(b_acc, b_residual, o_m, o_n, M, N, p_x_scale, p_w_scale, p_bias, p_gamma, GELU: tl.constexpr):
    """int32 sums of rows o_m and columns o_n -> fp32 results. b_residual may be None."""
    m_m, m_n = o_m < M, o_n < N
    y = b_acc.to(tl.float32) * tl.load(p_x_scale + o_m, mask=m_m, other=0.0)[:, None]
    y *= tl.load(p_w_scale + o_n, mask=m_n, other=0.0)[None, :]
    if p_bias is not None:
        y += tl.load(p_bias + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]
    if GELU:
        y = gelu(y)
    if b_residual is not None:
        gamma = tl.load(p_gamma + o_n, mask=m_n, other=0.0).to(tl.float32)
        y = b_residual.to(tl.float32) + gamma[None, :] * y
    return y


@triton.jit
def _row_factors(o_m, i_n, M, p_x_scale, p_out_scale, p_row_scale, SCALES, STEPS: tl.constexpr):
    """The factors [BLOCK_M] that turn rows o_m into codes under their static scales; the first tile of a row also
    writes its scale.

    Codes cannot carry NaN, so a row with NaN passes it on through its scale.
    """
    b_scale = tl.load(p_out_scale + o_m % SCALES)
    if i_n == 0:
        b_poison = 0.0 * tl.load(p_x_scale + o_m, mask=o_m < M, other=0.0)
        tl.store(p_row_scale + o_m, b_scale + b_poison, mask=o_m < M)
    return rotation_factor(STEPS) / b_scale


@triton.jit
def _codes(y, b_factor, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEPS: tl.constexpr):
    return to_codes(sums_and_differences(y, ROWS, COLUMNS, STEPS, True) * b_factor[:, None])


@triton.jit
def _last_to_add(b_acc, o_m, o_n, i_tile, M, N, p_sums, p_done, SPLIT_K: tl.constexpr):
    """Add this program's part of a tile in memory; the last of SPLIT_K programs gets True and the whole sum.

    Integer addition is associative, so the result does not depend on the order of arrival.
    """
    p_tile = p_sums + o_m.to(tl.int64)[:, None] * N + o_n[None, :]
    mask = (o_m < M)[:, None] & (o_n < N)[None, :]
    tl.atomic_add(p_tile, b_acc, mask=mask, sem="relaxed")
    tl.debug_barrier()  # every thread's additions come before the one that counts this program as done
    last = tl.atomic_add(p_done + i_tile, 1, sem="acq_rel") == SPLIT_K - 1
    if last:
        b_acc = tl.load(p_tile, mask=mask, other=0, cache_modifier=".cg")
    return last, b_acc


@triton.jit(do_not_specialize=["M", "SCALES"])
def _pointer_kernel(
    p_x, p_w, p_out, p_x_scale, p_w_scale, p_bias, p_gamma, p_residual, p_out_scale, p_row_scale, SCALES,
    p_sums, p_done, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    SPLIT_K: tl.constexpr, GELU: tl.constexpr, STEPS: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    i_tile = tl.program_id(0)
    i_split = tl.program_id(1)
    i_m, i_n = _tile_index(i_tile, M, N, BLOCK_M, BLOCK_N, GROUP_M)
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    steps = tl.cdiv(tl.cdiv(K, BLOCK_K), SPLIT_K)
    o_k = i_split * steps * BLOCK_K + tl.arange(0, BLOCK_K)
    # Rows past the end read valid rows instead; their results are never stored.
    p_a = p_x + (o_m % M).to(tl.int64)[:, None] * K + o_k[None, :]
    p_b = p_w + (o_n % N).to(tl.int64)[None, :] * K + o_k[:, None]
    b_acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    for i in range(steps):
        if EVEN_K:
            b_acc = tl.dot(tl.load(p_a), tl.load(p_b), b_acc, out_dtype=tl.int32)
        else:
            m_k = o_k + i * BLOCK_K < K
            b_a = tl.load(p_a, mask=m_k[None, :], other=0)
            b_b = tl.load(p_b, mask=m_k[:, None], other=0)
            b_acc = tl.dot(b_a, b_b, b_acc, out_dtype=tl.int32)
        p_a += BLOCK_K
        p_b += BLOCK_K
    last = True
    if SPLIT_K > 1:
        last, b_acc = _last_to_add(b_acc, o_m, o_n, i_tile, M, N, p_sums, p_done, SPLIT_K)
    if last:
        o_y = o_m.to(tl.int64)[:, None] * N + o_n[None, :]
        mask = (o_m < M)[:, None] & (o_n < N)[None, :]
        b_residual = None
        if p_residual is not None:
            b_residual = tl.load(p_residual + o_y, mask=mask, other=0.0)
        y = _epilogue(b_acc, b_residual, o_m, o_n, M, N, p_x_scale, p_w_scale, p_bias, p_gamma, GELU)
        if p_out_scale is not None:
            b_factor = _row_factors(o_m, i_n, M, p_x_scale, p_out_scale, p_row_scale, SCALES, STEPS)
            y = _codes(y, b_factor, BLOCK_M, BLOCK_N, STEPS)
        tl.store(p_out + o_y, y.to(p_out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["M", "SCALES"])
def _descriptor_kernel(
    d_x, d_w, d_out, p_x_scale, p_w_scale, p_bias, p_gamma, d_residual, p_out_scale, p_row_scale, SCALES,
    p_sums, p_done, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    SPLIT_K: tl.constexpr, GELU: tl.constexpr, STEPS: tl.constexpr, PERSISTENT: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    steps = tl.cdiv(tl.cdiv(K, BLOCK_K), SPLIT_K)
    tl.assume(steps > 0)  # otherwise the compiler duplicates the epilogue
    o_k = tl.program_id(1) * steps * BLOCK_K
    for i_tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=PERSISTENT):
        i_m, i_n = _tile_index(i_tile, M, N, BLOCK_M, BLOCK_N, GROUP_M)
        b_acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
        for i in range(steps):
            b_a = d_x.load([i_m * BLOCK_M, o_k + i * BLOCK_K])
            b_b = d_w.load([i_n * BLOCK_N, o_k + i * BLOCK_K])
            b_acc = tl.dot(b_a, b_b.T, b_acc, out_dtype=tl.int32)
        o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
        o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
        last = True
        if SPLIT_K > 1:
            last, b_acc = _last_to_add(b_acc, o_m, o_n, i_tile, M, N, p_sums, p_done, SPLIT_K)
        if last:
            if PARTS == 1:
                b_residual = None
                if d_residual is not None:
                    b_residual = d_residual.load([i_m * BLOCK_M, i_n * BLOCK_N])
                y = _epilogue(b_acc, b_residual, o_m, o_n, M, N, p_x_scale, p_w_scale, p_bias, p_gamma, GELU)
                if p_out_scale is not None:
                    b_factor = _row_factors(o_m, i_n, M, p_x_scale, p_out_scale, p_row_scale, SCALES, STEPS)
                    y = _codes(y, b_factor, BLOCK_M, BLOCK_N, STEPS)
                d_out.store([i_m * BLOCK_M, i_n * BLOCK_N], y.to(d_out.dtype))
            else:
                # One half of the columns after the other, with half the registers and half the shared memory for the
                # store.
                b_halves = tl.split(tl.permute(tl.reshape(b_acc, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1)))
                for i_half in tl.static_range(2):
                    i_column = i_n * BLOCK_N + i_half * (BLOCK_N // 2)
                    o_half = i_column + tl.arange(0, BLOCK_N // 2)
                    b_residual = None
                    if d_residual is not None:
                        b_residual = d_residual.load([i_m * BLOCK_M, i_column])
                    b = b_halves[i_half]
                    y = _epilogue(b, b_residual, o_m, o_half, M, N, p_x_scale, p_w_scale, p_bias, p_gamma, GELU)
                    d_out.store([i_m * BLOCK_M, i_column], y.to(d_out.dtype))


def int8_gemm(
    x_codes: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    epilogue: Epilogue,
    tile: Tile | None = None,
) -> Tensor:
    """`reference.int8_gemm` on the GPU; all matrices contiguous. tile: None for the table's choice for this size."""
    shape = (x_codes.shape[0], weight.shape[0])
    out = torch.empty(shape, device=x_codes.device, dtype=epilogue.dtype)
    _product(out, None, x_codes, x_scale, weight, weight_scale, epilogue, tile)
    return out


def int8_gemm_codes(
    x_codes: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    epilogue: Epilogue,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor]:
    """`reference.int8_gemm_quantize` on the GPU, with static scales; `tile` as for `int8_gemm`."""
    shape = (x_codes.shape[0], weight.shape[0])
    out = torch.empty(shape, device=x_codes.device, dtype=torch.int8)
    row_scale = torch.empty(shape[0], 1, device=x_codes.device, dtype=torch.float32)
    _product(out, row_scale, x_codes, x_scale, weight, weight_scale, epilogue, tile)
    return out, row_scale


def int8_gemm_into_(
    out: Tensor,
    x_codes: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    epilogue: Epilogue,
    tile: Tile | None = None,
) -> None:
    """`int8_gemm` into `out` [M, N], which may be the residual: a program reads what it will overwrite first."""
    _product(out, None, x_codes, x_scale, weight, weight_scale, epilogue, tile)


def _product(
    out: Tensor,
    row_scale: Tensor | None,
    x_codes: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    epilogue: Epilogue,
    tile: Tile | None,
) -> None:
    """Compute into `out`. row_scale: output for the scales of rows, if `out` is codes under static scales."""
    bias, _, gelu, gamma, residual, out_scale, rotation = epilogue
    (m, k), n = x_codes.shape, weight.shape[0]
    if m == 0:
        return
    size, arch = Size(m, n, k, residual is not None), architecture(x_codes.device)
    if tile is None and row_scale is not None:
        tile = codes_tile(arch, size, rotation)
    tile = tile or gemm_tile(arch, size, out.dtype == torch.float32)
    tiles = triton.cdiv(m, tile.block_m) * triton.cdiv(n, tile.block_n)
    scales = (x_scale, weight_scale, bias, gamma)
    static = (out_scale, row_scale, 1 if out_scale is None else out_scale.numel())
    rest = (*static, *_workspace(out, tiles if tile.split_k > 1 else 0), m, n, k)
    shared: dict[str, Any] = {
        "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k, "GROUP_M": tile.group_m,
        "SPLIT_K": tile.split_k, "GELU": gelu, "STEPS": steps(rotation),
        "num_warps": tile.warps, "num_stages": tile.stages,
    }  # fmt: skip
    if not tile.tma:
        launch(
            *(_pointer_kernel, (tiles, tile.split_k), x_codes, weight, out, *scales, residual, *rest),
            **shared, EVEN_K=k % (tile.split_k * tile.block_k) == 0,
        )  # fmt: skip
        return
    block = [tile.block_m, tile.block_n // tile.parts]
    descriptors = (
        TensorDescriptor.from_tensor(x_codes, [tile.block_m, tile.block_k]),
        TensorDescriptor.from_tensor(weight, [tile.block_n, tile.block_k]),
        TensorDescriptor.from_tensor(out, block),
    )
    d_residual = None if residual is None else TensorDescriptor.from_tensor(residual, block)
    programs = min(tiles, tile.per_sm * processors(out.device)) if tile.per_sm else tiles
    launch(
        *(_descriptor_kernel, (programs, tile.split_k), *descriptors, *scales, d_residual, *rest),
        **shared, PERSISTENT=tile.per_sm > 0, PARTS=tile.parts,
    )  # fmt: skip


def _workspace(out: Tensor, tiles: int) -> tuple[Tensor | None, Tensor | None]:
    """Zeroed partial sums and counters of finished parts per tile; (None, None) for no tiles."""
    if not tiles:
        return None, None
    zeros = torch.zeros(out.numel() + tiles, device=out.device, dtype=torch.int32)
    return zeros[: out.numel()], zeros[out.numel() :]
