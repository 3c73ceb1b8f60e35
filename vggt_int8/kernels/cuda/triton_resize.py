"""Bilinear resize of channels-last maps in Triton, with everything that is added to the result, in one pass.

A dense head resizes maps of up to 128 channels at full image size, and each resize was followed by passes that add a
bias, a position embedding, or the next finer map. Here a map is read once and written once. Programs take square pieces
of the result, so that neighboring pixels share their inputs in the L1 cache.
"""

# mypy: allow-untyped-defs
# (Triton kernels have no Python types.)

import torch
import triton
import triton.language as tl
from torch import Tensor

from vggt_int8.kernels.cuda.launch import launch

_TILE = 4096  # values per program: four 16-byte loads in flight for each of 128 threads, per corner


@triton.jit(do_not_specialize=["H_IN", "W_IN", "H_OUT", "W_OUT"])
def _resize_kernel(
    p_x, p_out, p_columns, p_rows, p_bias, p_addend, H_IN, W_IN, H_OUT, W_OUT, step_y, step_x,
    C: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, SAME: tl.constexpr,
):  # fmt: skip
    """Maps [F, H, W, C]. step: input pixels per output pixel, (in - 1) / (out - 1)."""
    n_w = tl.cdiv(W_OUT, BLOCK_W)
    n_h = tl.cdiv(H_OUT, BLOCK_H)
    i_tile = tl.program_id(0)
    i_frame = (i_tile // (n_w * n_h)).to(tl.int64)
    o_pixel = tl.arange(0, BLOCK_H * BLOCK_W)
    o_y = i_tile // n_w % n_h * BLOCK_H + o_pixel // BLOCK_W
    o_x = i_tile % n_w * BLOCK_W + o_pixel % BLOCK_W
    o_c = tl.arange(0, BLOCK_C)
    m_pixel, m_c = (o_y < H_OUT) & (o_x < W_OUT), o_c < C
    mask = m_pixel[:, None] & m_c[None, :]
    o_out = (((i_frame * H_OUT + o_y) * W_OUT + o_x) * C)[:, None] + o_c[None, :]
    if SAME:
        y = tl.load(p_x + o_out, mask=mask, other=0.0).to(tl.float32)
    else:
        # Positions as in PyTorch: the product in fp32, truncated to a pixel.
        y_in, x_in = o_y.to(tl.float32) * step_y, o_x.to(tl.float32) * step_x
        y_0, x_0 = tl.minimum(y_in.to(tl.int32), H_IN - 1), tl.minimum(x_in.to(tl.int32), W_IN - 1)
        w_y, w_x = (y_in - y_0.to(tl.float32))[:, None], (x_in - x_0.to(tl.float32))[:, None]
        o_0 = (i_frame * H_IN + y_0) * W_IN
        o_1 = (i_frame * H_IN + tl.minimum(y_0 + 1, H_IN - 1)) * W_IN
        x_1 = tl.minimum(x_0 + 1, W_IN - 1)
        b_00 = tl.load(p_x + ((o_0 + x_0) * C)[:, None] + o_c[None, :], mask=mask, other=0.0).to(tl.float32)
        b_01 = tl.load(p_x + ((o_0 + x_1) * C)[:, None] + o_c[None, :], mask=mask, other=0.0).to(tl.float32)
        b_10 = tl.load(p_x + ((o_1 + x_0) * C)[:, None] + o_c[None, :], mask=mask, other=0.0).to(tl.float32)
        b_11 = tl.load(p_x + ((o_1 + x_1) * C)[:, None] + o_c[None, :], mask=mask, other=0.0).to(tl.float32)
        y = (1 - w_y) * ((1 - w_x) * b_00 + w_x * b_01) + w_y * ((1 - w_x) * b_10 + w_x * b_11)
    if p_bias is not None:
        y += tl.load(p_bias + o_c, mask=m_c, other=0.0).to(tl.float32)[None, :]
    if p_columns is not None:
        m_u = o_c < C // 2
        m_v = m_c & (o_c >= C // 2)
        y += tl.load(
            p_columns + (o_x * (C // 2))[:, None] + o_c[None, :], mask=m_pixel[:, None] & m_u[None, :], other=0.0
        )
        y += tl.load(
            p_rows + (o_y * (C // 2))[:, None] + o_c[None, :] - C // 2, mask=m_pixel[:, None] & m_v[None, :], other=0.0
        )
    if p_addend is not None:
        y += tl.load(p_addend + o_out, mask=mask, other=0.0).to(tl.float32)
    tl.store(p_out + o_out, y.to(p_out.dtype.element_ty), mask=mask)


def resize(
    x: Tensor,
    height: int,
    width: int,
    columns: Tensor | None = None,
    rows: Tensor | None = None,
    bias: Tensor | None = None,
    addend: Tensor | None = None,
) -> Tensor:
    """`reference.resize` in one pass; every tensor contiguous."""
    frames, h_in, w_in, channels = x.shape
    out = torch.empty(frames, height, width, channels, device=x.device, dtype=x.dtype)
    block_c = triton.next_power_of_2(channels)
    pixels = max(1, _TILE // block_c)
    block_w = 1 << (pixels.bit_length() // 2)
    block_h = pixels // block_w
    programs = frames * triton.cdiv(height, block_h) * triton.cdiv(width, block_w)
    if programs == 0:
        return out
    launch(
        *(_resize_kernel, (programs,), x, out, columns, rows, bias, addend, h_in, w_in, height, width),
        *((h_in - 1) / max(height - 1, 1), (w_in - 1) / max(width - 1, 1)),
        C=channels, BLOCK_C=block_c, BLOCK_H=block_h, BLOCK_W=block_w, SAME=(h_in, w_in) == (height, width),
        num_warps=4,
    )  # fmt: skip
    return out
