"""Attention for Hopper whose matrix units go on during the softmax, in Gluon, Triton's lower-level language.

Triton waits for all products before the exponentials that follow them, so a program alternates between matrix units and
exponentials, and only another program on the same multiprocessor fills the gaps. Gluon leaves the waiting to the
kernel: here the weights of one block of keys are multiplied with its values while the scores of the next become
weights. (The scores after those could be under way as well, but sums that are rescaled meanwhile make the assembler
run all products one after another.) The order of work is that of Shah et al., "FlashAttention-3" (2024), section 3.2.

Keys and values come through TMA into rings of STAGES blocks. Same operands and results as the kernel in
`triton_attention.py`, for head dims of 32, 64 and 128 and 16-bit values. Names as there; s_ shared memory, t_ a product
under way.
"""

# mypy: allow-untyped-defs
# (Gluon kernels have no Python types.)

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

from vggt_int8.kernels.triton_attention import EXP2_OF_FOUR, EXP2_REGISTERS


@gluon.jit
def _row(i_block, blocks, BLOCK: gl.constexpr):
    """First key of a block. The block that the end of the sequence may cut off comes first, the others in order."""
    return gl.where(i_block == 0, blocks - 1, i_block - 1) * BLOCK


@gluon.jit
def _fetch(x, s_x, bars, i_b, i_h, i_block, blocks, BLOCK: gl.constexpr, STAGES: gl.constexpr):
    """Start copying block i_block of a head into its place in the ring; nothing past the last one."""
    bar = bars.index(i_block % STAGES)
    mbarrier.expect(bar, x.block_type.nbytes, pred=i_block < blocks)
    at = [i_b, i_h, _row(i_block, blocks, BLOCK), 0]
    tma.async_copy_global_to_shared(x, at, bar, s_x.index(i_block % STAGES), pred=i_block < blocks)


@gluon.jit
def _ready(s_x, bars, i_block, STAGES: gl.constexpr):
    """The place in the ring of block i_block, once its bytes are there."""
    mbarrier.wait(bars.index(i_block % STAGES), (i_block // STAGES) & 1)
    return s_x.index(i_block % STAGES)


@gluon.jit
def _weigh(
    b_s, b_scale, b_max, b_sum, p_k_scale, i_row, N,
    MASKED: gl.constexpr, BLOCK: gl.constexpr, GROUP: gl.constexpr, POLYNOMIAL: gl.constexpr,
    layout: gl.constexpr, dtype: gl.constexpr,
):  # fmt: skip
    """Scores of keys i_row ... -> weights in `layout`, new maxima and sums, and what the older sums shrink by."""
    b_s = b_s.to(gl.float32)
    if p_k_scale is not None:
        b_scale *= gl.load(p_k_scale + i_row // GROUP)
    if MASKED:
        o_n = i_row + gl.arange(0, BLOCK, layout=gl.SliceLayout(0, b_s.type.layout))
        b_s = gl.where((o_n < N)[None, :], b_s, float("-inf"))
    b_new = gl.maximum(b_max, gl.max(b_s, axis=1) * b_scale)
    b_shrink = gl.exp2(b_max - b_new)
    b_p = b_s * b_scale[:, None] - b_new[:, None]
    if POLYNOMIAL:
        b_p = gl.inline_asm_elementwise(EXP2_OF_FOUR, EXP2_REGISTERS, [b_p], gl.float32, is_pure=True, pack=4)
    else:
        b_p = gl.exp2(b_p)
    b_sum = b_sum * b_shrink + gl.sum(b_p, axis=1)
    return gl.convert_layout(b_p.to(dtype), layout), b_new, b_sum, b_shrink


@gluon.jit(do_not_specialize=["N"])
def overlapped_attention_kernel(
    q, k, v, p_out, p_q_scale, p_k_scale, N, H, scale,
    D: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, GROUP: gl.constexpr, STAGES: gl.constexpr,
    POLYNOMIAL: gl.constexpr, num_warps: gl.constexpr,
):  # fmt: skip
    """q, k, v: descriptors of [B, H, N, D]; scales and out [B, N, H, D] as in `triton_attention`."""
    INT8: gl.constexpr = p_q_scale is not None
    sums: gl.constexpr = gl.int32 if INT8 else gl.float32
    dtype: gl.constexpr = v.dtype
    scores: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, BLOCK_N, 32 if INT8 else 16])
    values: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, D, 16])
    operand: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=values, k_width=2)
    rows: gl.constexpr = gl.SliceLayout(1, scores)
    value_rows: gl.constexpr = gl.SliceLayout(1, values)
    tiles = gl.cdiv(N, BLOCK_M)
    i_head = gl.program_id(0) // tiles
    i_m = gl.program_id(0) % tiles * BLOCK_M
    i_b, i_h = i_head // H, i_head % H
    blocks = gl.cdiv(N, BLOCK_N)
    b_scale = gl.full([BLOCK_M], 1.0, gl.float32, layout=rows) * scale
    if INT8:
        o_q = i_m + gl.arange(0, BLOCK_M, layout=rows)
        b_scale *= gl.load(p_q_scale + i_head.to(gl.int64) * N + o_q, mask=o_q < N, other=1.0)
        p_k_scale += i_head * gl.cdiv(N, GROUP)

    # The rings have the descriptors' layouts without their two leading dimensions, which are one.
    s_q = gl.allocate_shared_memory(q.dtype, [BLOCK_M, D], gl.NVMMASharedLayout.get_default_for([BLOCK_M, D], q.dtype))
    s_k = gl.allocate_shared_memory(
        k.dtype, [STAGES, BLOCK_N, D], gl.NVMMASharedLayout.get_default_for([BLOCK_N, D], k.dtype)
    )
    s_v = gl.allocate_shared_memory(
        dtype, [STAGES, BLOCK_N, D], gl.NVMMASharedLayout.get_default_for([BLOCK_N, D], dtype)
    )
    q_bar = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    k_bars = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_bars = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    mbarrier.init(q_bar, count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_bars.index(i), count=1)
        mbarrier.init(v_bars.index(i), count=1)
    fence_async_shared()
    gl.thread_barrier()
    mbarrier.expect(q_bar, q.block_type.nbytes)
    tma.async_copy_global_to_shared(q, [i_b, i_h, i_m, 0], q_bar, s_q)
    for i in gl.static_range(STAGES):
        _fetch(k, s_k, k_bars, i_b, i_h, i, blocks, BLOCK_N, STAGES)
        _fetch(v, s_v, v_bars, i_b, i_h, i, blocks, BLOCK_N, STAGES)

    b_none = gl.zeros([BLOCK_M, BLOCK_N], sums, layout=scores)
    b_max = gl.full([BLOCK_M], float("-inf"), gl.float32, layout=rows)
    b_sum = gl.zeros([BLOCK_M], gl.float32, layout=rows)
    b_acc = gl.zeros([BLOCK_M, D], gl.float32, layout=values)
    mbarrier.wait(q_bar, 0)
    s_block = _ready(s_k, k_bars, 0, STAGES).permute((1, 0))
    t_s = warpgroup_mma(s_q, s_block, b_none, use_acc=False, is_async=True)
    b_s = warpgroup_mma_wait(0, deps=[t_s])
    b_p, b_max, b_sum, _ = _weigh(
        b_s, b_scale, b_max, b_sum, p_k_scale, _row(0, blocks, BLOCK_N), N,
        True, BLOCK_N, GROUP, False, operand, dtype,
    )  # fmt: skip
    gl.thread_barrier()
    _fetch(k, s_k, k_bars, i_b, i_h, STAGES, blocks, BLOCK_N, STAGES)
    for i in range(1, blocks):
        s_block = _ready(s_k, k_bars, i, STAGES).permute((1, 0))
        t_s = warpgroup_mma(s_q, s_block, b_none, use_acc=False, is_async=True)
        t_acc = warpgroup_mma(b_p, _ready(s_v, v_bars, i - 1, STAGES), b_acc, is_async=True)
        b_s = warpgroup_mma_wait(1, deps=[t_s])
        # The product with the values goes on while these scores become weights.
        b_new, b_max, b_sum, b_shrink = _weigh(
            b_s, b_scale, b_max, b_sum, p_k_scale, _row(i, blocks, BLOCK_N), N,
            False, BLOCK_N, GROUP, POLYNOMIAL, operand, dtype,
        )  # fmt: skip
        b_acc, b_p = warpgroup_mma_wait(0, deps=[t_acc, b_p])
        b_acc *= gl.convert_layout(b_shrink, value_rows)[:, None]
        b_p = b_new
        gl.thread_barrier()  # all warps are done with these keys and with the values before: their places are free
        _fetch(k, s_k, k_bars, i_b, i_h, i + STAGES, blocks, BLOCK_N, STAGES)
        _fetch(v, s_v, v_bars, i_b, i_h, i - 1 + STAGES, blocks, BLOCK_N, STAGES)
    t_acc = warpgroup_mma(b_p, _ready(s_v, v_bars, blocks - 1, STAGES), b_acc, is_async=True)
    b_acc = warpgroup_mma_wait(0, deps=[t_acc])
    b_acc /= gl.convert_layout(b_sum, value_rows)[:, None]
    o_m = i_m + gl.arange(0, BLOCK_M, layout=value_rows)
    o_d = gl.arange(0, D, layout=gl.SliceLayout(0, values))
    p_y = p_out + ((i_b.to(gl.int64) * N + o_m)[:, None] * H + i_h) * D + o_d[None, :]
    gl.store(p_y, b_acc.to(dtype), mask=(o_m < N)[:, None])


def descriptors(q: Tensor, k: Tensor, v: Tensor, block_m: int, block_n: int) -> tuple[TensorDescriptor, ...]:
    """What the kernel reads q, k, v [B, H, ..., D] through: any strides that are whole 16-byte units."""
    result = []
    for x, rows in ((q, block_m), (k, block_n), (v, block_n)):
        block, dtype = [1, 1, rows, v.shape[3]], getattr(gl, str(x.dtype).removeprefix("torch."))
        layout = gl.NVMMASharedLayout.get_default_for(block, dtype)
        result.append(TensorDescriptor(x, [*v.shape], [*x.stride()], block, layout))
    return tuple(result)
