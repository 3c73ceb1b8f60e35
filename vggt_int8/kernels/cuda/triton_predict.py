"""The end of a dense head in Triton: the last 1x1 convolution and the exponentials after it, in one pass.

A pixel has 32 channels and gives 2 or 4 fp32 values, so reading the map is the whole cost; as separate operations, the
product, the casts and the exponentials read and write these values ten times.
"""

# mypy: allow-untyped-defs
# (Triton kernels have no Python types.)

import triton
import triton.language as tl
from torch import Tensor

from vggt_int8.kernels.cuda.launch import launch

_TILE = 8192  # values per program


@triton.jit
def _expm1(x):
    """exp(x) - 1 for x >= 0, by the first terms of the series near 0, where the difference would cancel."""
    series = x * (1 + x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6 * (1 + x / 7))))))
    return tl.where(x < 0.5, series, tl.exp(x) - 1)


@triton.jit(do_not_specialize=["PIXELS"])
def _predict_kernel(
    p_x, p_weight, p_bias, p_values, p_confidence, PIXELS,
    C: tl.constexpr, N: tl.constexpr, INVERSE_LOG: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    o_pixel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    o_c = tl.arange(0, BLOCK_C)
    m_pixel, m_c = o_pixel < PIXELS, o_c < C
    b_x = tl.load(p_x + o_pixel[:, None] * C + o_c[None, :], mask=m_pixel[:, None] & m_c[None, :], other=0.0)
    for i in tl.static_range(N):
        weight = tl.load(p_weight + i * C + o_c, mask=m_c, other=0.0).to(tl.float32)
        y = tl.sum(b_x.to(tl.float32) * weight[None, :], axis=1)
        if p_bias is not None:
            y += tl.load(p_bias + i).to(tl.float32)
        if i == N - 1:
            tl.store(p_confidence + o_pixel, 1 + tl.exp(y), mask=m_pixel)
        elif INVERSE_LOG:
            size = _expm1(tl.abs(y))
            tl.store(p_values + o_pixel * (N - 1) + i, tl.where(y < 0, -size, size), mask=m_pixel)
        else:
            tl.store(p_values + o_pixel * (N - 1) + i, tl.exp(y), mask=m_pixel)


def predict_(
    x: Tensor, weight: Tensor, bias: Tensor | None, inverse_log: bool, values: Tensor, confidence: Tensor
) -> None:
    """`reference.predict` in one pass, written into values and confidence; every tensor contiguous."""
    outputs, channels = weight.shape
    block_c = triton.next_power_of_2(channels)
    block = max(1, _TILE // block_c)
    if confidence.numel() == 0:
        return
    launch(
        *(_predict_kernel, (triton.cdiv(confidence.numel(), block),)),
        *(x, weight, bias, values, confidence, confidence.numel()),
        C=channels, N=outputs, INVERSE_LOG=inverse_log, BLOCK=block, BLOCK_C=block_c, num_warps=4,
    )  # fmt: skip
