"""The definition of attention, in plain PyTorch.

Notation: B sequences, H heads, N queries, L keys, D head dim.
"""

from torch import Tensor

from vggt_int8.kernels.reference import quantize_rows

MAX_HEAD_DIM = 128

_SCORES = 1 << 24  # at a time: 64 MB in fp32


def float_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / sqrt(D)) v, with scores and sums in fp32 and weights rounded to v's dtype.

    q [B, H, N, D], k and v [B, H, L, D] float of one dtype, any strides, L > 0 unless there are no queries -> [B, N, H
    * D] in that dtype, contiguous.
    """
    batch, heads, tokens, dim = q.shape
    out = v.new_empty(batch, tokens, heads, dim)
    keys, values = k.float().transpose(-1, -2), v.float()
    for rows in range(0, tokens, rows_at_once := max(1, _SCORES // (batch * heads * max(k.shape[2], 1)))):
        part = slice(rows, rows + rows_at_once)
        scores = q[:, :, part].float() @ keys * dim**-0.5
        weights = (scores - scores.amax(dim=-1, keepdim=True)).exp_()
        total = weights.sum(dim=-1, keepdim=True)
        out[:, part] = ((weights.to(v.dtype).float() @ values) / total).to(v.dtype).transpose(1, 2)
    return out.flatten(2)


def float_attention_quantize(q: Tensor, k: Tensor, v: Tensor, out_scale: Tensor) -> tuple[Tensor, Tensor]:
    """`float_attention` directly to the next linear's input: codes [B * N, H * D] int8, scales [B * N, 1] fp32.

    out_scale: static scales, as `input_scale` of `reference.quantize_rows`.
    """
    return quantize_rows(float_attention(q, k, v).flatten(0, 1), out_scale)
