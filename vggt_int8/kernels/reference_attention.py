"""The definition of attention with an INT8 product of queries and keys, in plain PyTorch.

Every key is shifted by the mean of its head's keys first: a shift moves all scores of a query alike, which the softmax
does not see, and it takes away the large common part that would leave few codes for what tells keys apart. Queries have
one scale per token, keys one scale per `KEY_GROUP` tokens, so that a block of scores is scaled row by row. Weights
times values stays in floating point. Source of the method: Zhang et al., "SageAttention" (2024).

Notation: B sequences, H heads, N tokens, D head dim, G = ceil(N / KEY_GROUP) groups.
"""

import torch.nn.functional as F
from torch import Tensor

from vggt_int8.kernels.reference import absmax_scale, quantize, quantize_rows

KEY_GROUP = 128
MAX_HEAD_DIM = 128

_SCORES = 1 << 24  # at a time: 64 MB in fp32


def quantize_queries_and_keys(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k [B, H, N, D] float -> codes of q [B, H, N, D] int8, scales [B, H, N] fp32; of k alike, scales [B, H, G].

    NaN or inf in a query makes that query's scale NaN or inf; in a key, the scales of its whole head.
    """
    q_scale = absmax_scale(q, dim=-1)
    k = k.float() - k.float().mean(dim=2, keepdim=True)
    padded = F.pad(k, (0, 0, 0, -k.shape[2] % KEY_GROUP)).unflatten(2, (-1, KEY_GROUP))
    k_scale = absmax_scale(padded, dim=(-2, -1))  # [B, H, G, 1, 1]
    k_codes = quantize(padded, k_scale).flatten(2, 3)[:, :, : k.shape[2]]
    return quantize(q, q_scale), q_scale[..., 0], k_codes, k_scale[..., 0, 0]


def int8_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`float_attention` with scores from INT8 codes. Shapes and dtypes as there.

    A product of codes is a sum of at most `MAX_HEAD_DIM` integers below 2^14, so fp32 holds it exactly.
    """
    return attention_of_codes(*quantize_queries_and_keys(q, k), v) if q.shape[2] else _attend(q, k, v)


def attention_of_codes(q_codes: Tensor, q_scale: Tensor, k_codes: Tensor, k_scale: Tensor, v: Tensor) -> Tensor:
    """`int8_attention` after `quantize_queries_and_keys`."""
    k_scale = k_scale.repeat_interleave(KEY_GROUP, dim=2)[:, :, : v.shape[2]]
    return _attend(q_codes, k_codes, v, q_scale, k_scale)


def float_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / sqrt(D)) v, scores and sums in fp32, the weights rounded to v's dtype.

    q, k, v [B, H, N, D] float of one dtype, any strides -> [B, N, H * D] in that dtype, contiguous.
    """
    return _attend(q, k, v)


def float_attention_quantize(q: Tensor, k: Tensor, v: Tensor, out_scale: Tensor) -> tuple[Tensor, Tensor]:
    """`float_attention` straight to the next linear's input: codes [B * N, H * D] int8, scales [B * N, 1] fp32.

    out_scale: static scales, as `input_scale` of `reference.quantize_rows`.
    """
    return quantize_rows(float_attention(q, k, v).flatten(0, 1), out_scale)


def _attend(q: Tensor, k: Tensor, v: Tensor, q_scale: Tensor | None = None, k_scale: Tensor | None = None) -> Tensor:
    batch, heads, tokens, dim = v.shape
    out = v.new_empty(batch, tokens, heads, dim)
    keys, values = k.float().transpose(-1, -2), v.float()
    for rows in range(0, tokens, rows_at_once := max(1, _SCORES // (batch * heads * max(tokens, 1)))):
        part = slice(rows, rows + rows_at_once)
        scores = q[:, :, part].float() @ keys
        if q_scale is not None and k_scale is not None:
            scores *= q_scale[:, :, part, None] * k_scale[:, :, None]
        scores *= dim**-0.5
        weights = (scores - scores.amax(dim=-1, keepdim=True)).exp_()
        total = weights.sum(dim=-1, keepdim=True)
        out[:, part] = ((weights.to(v.dtype).float() @ values) / total).to(v.dtype).transpose(1, 2)
    return out.flatten(2)
