"""Warp-specialized attention for Hopper in Gluon, Triton's lower-level language.

A program owns 64 queries of one head for each of its groups of four warps. One additional warp copies keys and values
into two ring buffers of blocks; each group reads them at its own pace, so that the tensor cores work for one group
while another computes exponentials. In the Triton kernel (`triton_attention.py`) all warps of a program synchronize
three times per block, and programs are smaller, so keys and values are read from the L2 cache twice as often. Within a
group, the product of weights and values also overlaps with the conversion of the next scores to weights, and sums of
weights stay in their threads until the end.

As in `triton_attention._attend`, scores are reduced by an estimate of their maximum that is computed beforehand. Groups
whose result is not finite set a flag, and `triton_attention` recomputes their queries.

Names as there; s_ shared memory, t_ a product in flight. Barriers, one row of STAGES each: keys loaded (full), keys
read by all groups (empty), values loaded, values read; and one more for the queries.
"""

# mypy: allow-untyped-defs
# (Gluon kernels have no Python types.)

import math
from typing import Any

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from vggt_int8.kernels.cuda.attention_variants import Variant
from vggt_int8.kernels.cuda.launch import launch
from vggt_int8.kernels.cuda.triton_gemm import to_codes

barrier = gl.thread_barrier if hasattr(gl, "thread_barrier") else gl.barrier  # its names in Triton 3.6 and 3.7
ROWS = 64  # queries of a group: what its four warps multiply in one instruction
GROUPS = 4
REGISTERS = 112  # per thread of a group: 64 K minus those of the copying warp. Queries do not fit as well


@gluon.jit
def _fetch(x, s_x, bars, at, i_row, i_block, RING: gl.constexpr, STAGES: gl.constexpr):
    """Copy rows from i_row on to block i_block of ring 0 (keys) or 1 (values), once all groups have read its previous
    contents.
    """
    stage = i_block % STAGES
    full, empty = bars.index(2 * RING * STAGES + stage), bars.index((2 * RING + 1) * STAGES + stage)
    mbarrier.wait(empty, ((i_block // STAGES) & 1) ^ 1)
    mbarrier.expect(full, x.block_type.nbytes)
    tma.async_copy_global_to_shared(x, [at[0], at[1], i_row, 0], full, s_x.index(RING * STAGES + stage))


@gluon.jit
def _copy(k, v, s_x, bars, i_b, i_h, i_own, blocks, BLOCK_N: gl.constexpr, STAGES: gl.constexpr, LOOKS: gl.constexpr):
    """First the keys for the estimate: the last block, the first, and those at the queries' own positions. Then keys
    and values of all blocks, starting with the last, which may be partial.
    """
    at = (i_b, i_h)
    _fetch(k, s_x, bars, at, (blocks - 1) * BLOCK_N, 0, 0, STAGES)
    _fetch(k, s_x, bars, at, 0, 1, 0, STAGES)
    for i in range(2, LOOKS):
        i_block = gl.maximum(gl.minimum(i_own + i - 2, blocks - 2), 0)  # a whole one, if there is any
        _fetch(k, s_x, bars, at, i_block * BLOCK_N, i, 0, STAGES)
    for i in range(blocks):
        i_row = gl.where(i == 0, blocks - 1, i - 1) * BLOCK_N
        _fetch(k, s_x, bars, at, i_row, LOOKS + i, 0, STAGES)
        _fetch(v, s_x, bars, at, i_row, i, 1, STAGES)


@gluon.jit
def _block(s_x, bars, i_block, RING: gl.constexpr, STAGES: gl.constexpr):
    """Block i_block of a ring, once it is loaded."""
    stage = i_block % STAGES
    mbarrier.wait(bars.index(2 * RING * STAGES + stage), (i_block // STAGES) & 1)
    return s_x.index(RING * STAGES + stage)


@gluon.jit
def _scores(s_q, s_x, bars, i_block, none, STAGES: gl.constexpr):
    """Start the product of the queries with block i_block of the keys."""
    s_k = _block(s_x, bars, i_block, 0, STAGES).permute((1, 0))
    return warpgroup_mma(s_q, s_k, none, use_acc=False, is_async=True)


@gluon.jit
def _sums(b_p, BLOCK_N: gl.constexpr):
    """Weights [64, BLOCK_N] -> [64, 4]: the partial sums of the four threads of a row."""
    layout: gl.constexpr = gl.DistributedLinearLayout(
        [[8, 0]], [[0, 1], [0, 2], [1, 0], [2, 0], [4, 0]], [[16, 0], [32, 0]], [], [64, 4]
    )
    b_part = gl.sum(gl.sum(gl.reshape(b_p, [64, BLOCK_N // 8, 4, 2]), axis=3), axis=1)
    return gl.convert_layout(b_part, layout, assert_trivial=True)


@gluon.jit
def _store(b_acc, b_all, results, rows, GROUP: gl.constexpr, H: gl.constexpr, D: gl.constexpr):
    """Divide sums of values [64, D] by sums of weights [64], store them, and flag results that are not finite."""
    p_y, p_wrong, p_out_scale, SCALES, i_row = results
    m_finite = (gl.abs(b_acc) < float("inf")) & (b_all < float("inf"))[:, None]
    wrong = gl.max(gl.max(gl.where(m_finite, 0, 1), axis=1), axis=0)
    if rows > GROUP * 64:
        gl.store(p_wrong + GROUP, wrong)
    y = b_acc / b_all[:, None]
    o_m = GROUP * 64 + gl.arange(0, 64, layout=b_all.type.layout)
    p_y += o_m[:, None] * (H * D) + gl.arange(0, D, layout=gl.SliceLayout(0, b_acc.type.layout))[None, :]
    if p_out_scale is not None:
        b_scale = gl.load(p_out_scale + (i_row + o_m) % SCALES)
        gl.store(p_y, to_codes(y * (1.0 / b_scale)[:, None]), mask=(o_m < rows)[:, None])
    else:
        gl.store(p_y, y.to(p_y.dtype.element_ty), mask=(o_m < rows)[:, None])


@gluon.jit
def _attend(
    shared, results, rows, keys, blocks,
    GROUP: gl.constexpr, H: gl.constexpr, scale: gl.constexpr, D: gl.constexpr,
    BLOCK_N: gl.constexpr, STAGES: gl.constexpr, LOOKS: gl.constexpr,
):  # fmt: skip
    """All keys and values for the 64 queries of a group. results: the program's first output and flag, scales of codes,
    and the index of its first row; rows: the number of rows from there on.
    """
    s_q, s_x, bars = shared
    dtype: gl.constexpr = s_x.dtype
    scores: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    values: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    weights: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=values, k_width=2)
    mbarrier.wait(bars.index(4 * STAGES), 0)
    s_own = s_q.index(GROUP)
    none = gl.zeros([64, BLOCK_N], gl.float32, layout=scores)
    b_acc = gl.zeros([64, D], gl.float32, layout=values)
    b_max = gl.full([64], float("-inf"), gl.float32, layout=gl.SliceLayout(1, scores))
    o_n = (blocks - 1) * BLOCK_N + gl.arange(0, BLOCK_N, layout=gl.SliceLayout(0, scores))
    for i in range(LOOKS):
        b_s = warpgroup_mma_wait(0, deps=[_scores(s_own, s_x, bars, i, none, STAGES)])
        mbarrier.arrive(bars.index(STAGES + i % STAGES))
        end = gl.where((i == 0) | (blocks == 1), keys, blocks * BLOCK_N)  # all other blocks are whole
        b_s = gl.where((o_n < end)[None, :], b_s, float("-inf"))
        b_max = gl.maximum(b_max, gl.max(b_s, axis=1) * scale)
    b_s = warpgroup_mma_wait(0, deps=[_scores(s_own, s_x, bars, LOOKS, none, STAGES)])
    mbarrier.arrive(bars.index(STAGES + LOOKS % STAGES))
    b_p = gl.exp2(gl.where((o_n < keys)[None, :], b_s, float("-inf")) * scale - b_max[:, None])
    b_sum = _sums(b_p, BLOCK_N)
    b_w = gl.convert_layout(b_p.to(dtype), weights)
    for i in range(1, blocks):
        t_s = _scores(s_own, s_x, bars, LOOKS + i, none, STAGES)
        t_acc = warpgroup_mma(b_w, _block(s_x, bars, i - 1, 1, STAGES), b_acc, is_async=True)
        b_s = warpgroup_mma_wait(1, deps=[t_s])
        mbarrier.arrive(bars.index(STAGES + (LOOKS + i) % STAGES))
        b_p = gl.exp2(b_s * scale - b_max[:, None])
        b_sum += _sums(b_p, BLOCK_N)
        # Rounded before the wait, so that it uses other registers than the weights in flight and is not deferred.
        b_next = gl.convert_layout(b_p.to(dtype), weights)
        b_acc, b_w, b_next = warpgroup_mma_wait(0, deps=[t_acc, b_w, b_next])
        mbarrier.arrive(bars.index(3 * STAGES + (i - 1) % STAGES))
        b_w = b_next
    t_acc = warpgroup_mma(b_w, _block(s_x, bars, blocks - 1, 1, STAGES), b_acc, is_async=True)
    b_acc = warpgroup_mma_wait(0, deps=[t_acc])
    b_all = gl.convert_layout(gl.sum(b_sum, axis=1), gl.SliceLayout(1, values))
    _store(b_acc, b_all, results, rows, GROUP, H, D)


@gluon.jit(do_not_specialize=["N", "L", "SCALES"])
def _grouped_attention_kernel(
    q, k, v, p_out, p_wrong, p_out_scale, SCALES, N, L,
    H: gl.constexpr, scale: gl.constexpr, D: gl.constexpr, GROUPS: gl.constexpr, BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr, REGISTERS: gl.constexpr, num_warps: gl.constexpr,
):  # fmt: skip
    """q [B, H, N, D], k and v [B, H, L, D]: descriptors -> out [B, N, H, D], floats, or codes where there is
    p_out_scale; wrong [B * H * ceil(N / 64)] int32.
    """
    LOOKS: gl.constexpr = 2 + 64 * GROUPS // BLOCK_N
    tiles = gl.cdiv(N, 64 * GROUPS)
    i_head = gl.program_id(0) // tiles  # programs side by side share keys and values in the L2 cache
    i_m = gl.program_id(0) % tiles * (64 * GROUPS)
    i_b, i_h = i_head // H, i_head % H
    blocks = gl.cdiv(L, BLOCK_N)
    i_own = (i_m.to(gl.int64) * L // N).to(gl.int32) // BLOCK_N
    one_q: gl.constexpr = gl.NVMMASharedLayout.get_default_for([64, D], v.dtype)
    one_x: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_N, D], v.dtype)
    s_q = gl.allocate_shared_memory(v.dtype, [GROUPS, 64, D], one_q)
    s_x = gl.allocate_shared_memory(v.dtype, [2 * STAGES, BLOCK_N, D], one_x)
    bars = gl.allocate_shared_memory(gl.int64, [4 * STAGES + 1, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(bars.index(i), count=1)
        mbarrier.init(bars.index(STAGES + i), count=GROUPS)
        mbarrier.init(bars.index(2 * STAGES + i), count=1)
        mbarrier.init(bars.index(3 * STAGES + i), count=GROUPS)
    mbarrier.init(bars.index(4 * STAGES), count=1)
    fence_async_shared()
    barrier()
    mbarrier.expect(bars.index(4 * STAGES), GROUPS * q.block_type.nbytes)
    for i in gl.static_range(GROUPS):
        tma.async_copy_global_to_shared(q, [i_b, i_h, i_m + i * 64, 0], bars.index(4 * STAGES), s_q.index(i))
    i_row = i_b.to(gl.int64) * N + i_m
    results = (
        p_out + (i_row * H + i_h) * D, p_wrong + i_head * gl.cdiv(N, 64) + i_m // 64, p_out_scale, SCALES, i_row,
    )  # fmt: skip
    shared, rows = (s_q, s_x, bars), N - i_m
    # Unrolled, since constants in a tuple of tuples would become values.
    gl.warp_specialize(
        [
            (_attend, (shared, results, rows, L, blocks, 0, H, scale, D, BLOCK_N, STAGES, LOOKS)),
            (_attend, (shared, results, rows, L, blocks, 1, H, scale, D, BLOCK_N, STAGES, LOOKS)),
            (_attend, (shared, results, rows, L, blocks, 2, H, scale, D, BLOCK_N, STAGES, LOOKS)),
            (_attend, (shared, results, rows, L, blocks, 3, H, scale, D, BLOCK_N, STAGES, LOOKS)),
            (_copy, (k, v, s_x, bars, i_b, i_h, i_own, blocks, BLOCK_N, STAGES, LOOKS)),
        ],
        [4, 4, 4, 1],
        [REGISTERS, REGISTERS, REGISTERS, 24],
    )  # fmt: skip


def grouped_attention(
    operands: tuple[Tensor, ...], out: Tensor, variant: Variant, out_scale: Tensor | None = None
) -> Tensor:
    """Attention of q [B, H, N, D] to k, v [B, H, L, D], views with strides in multiples of 16 bytes, into out [B, N, H
    * D].

    Returns [B * H, ceil(N / 64)] int32: non-zero where the result of 64 queries of a head is not finite and may be
    wrong.
    """
    q, k, v = operands
    (batch, heads, tokens, dim), keys = q.shape, k.shape[2]
    wrong = torch.empty(batch * heads, triton.cdiv(tokens, ROWS), device=q.device, dtype=torch.int32)
    descriptors = [_descriptor(x, rows) for x, rows in ((q, ROWS), (k, variant.block_n), (v, variant.block_n))]
    assert variant.block_m == GROUPS * ROWS
    grid = (triton.cdiv(tokens, variant.block_m) * batch * heads,)
    results = (out, wrong, out_scale, 1 if out_scale is None else out_scale.numel())
    launch(
        *(_grouped_attention_kernel, grid, *descriptors, *results, tokens, keys),
        H=heads, scale=math.log2(math.e) * dim**-0.5, D=dim, GROUPS=GROUPS, BLOCK_N=variant.block_n,
        STAGES=variant.stages, REGISTERS=REGISTERS, num_warps=4,
    )  # fmt: skip
    return wrong


def _descriptor(x: Tensor, rows: int) -> Any:
    block = [1, 1, rows, x.shape[3]]
    layout = gl.NVMMASharedLayout.get_default_for(block, getattr(gl, str(x.dtype).removeprefix("torch.")))
    return TensorDescriptor(x, [*x.shape], [*x.stride()], block, layout)
