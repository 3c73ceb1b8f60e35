"""One transformer block as fused kernels over the plain `Block`, whose tensors it reads and does not copy.

    LayerNorm + quantize -> qkv GEMM -> q/k norm + RoPE in place -> attention -> quantize -> proj GEMM + LayerScale + x
    LayerNorm + quantize -> fc1 GEMM + GELU -> quantize -> fc2 GEMM + LayerScale + x

Seven passes over memory and five products; nothing else. With static scales the two quantizations alone are no passes:
fc1 and attention write codes. Layers that are not W8A8 run unfused, each in its own way.
"""

from functools import partial

import torch
from torch import Tensor, nn

from vggt_int8.kernels import ops
from vggt_int8.model.layers import Attention, Block
from vggt_int8.runtime.attention import attention, attention_codes
from vggt_int8.runtime.linear import Codes, linear_residual_, mlp_residual_, norm_linear, takes_codes
from vggt_int8.runtime.memory import parts
from vggt_int8.runtime.token_scales import TokenScales

_NO_SPECIAL = TokenScales()


def run_block(
    block: nn.Module,
    x: Tensor,
    sequences: int,
    rope: Tensor | None,
    rows: int,
    out: Tensor | None = None,
    scales: TokenScales = _NO_SPECIAL,
) -> Tensor:
    """x [M, C], `sequences` of equal length that attend each within itself -> [M, C], in `out` or a new tensor.

    rope: [2, P, D] fp32, cosines and sines, or None for a block without q/k norm and RoPE.
    rows: the MLP, whose hidden activations are the widest of the block, works on at most so many rows at a time.
    scales: made of this block, where special tokens have static scales of their own; x are whole frames then.
    """
    assert isinstance(block, Block)
    y = _attention_output(block, block.attn, x, sequences, rope, scales)
    out = torch.empty_like(x) if out is None else out  # not before attention, which holds the most memory
    linear_residual_(out, y, block.attn.proj, block.ls1.gamma, x, scales.of)
    del y
    for part, tokens in scales.parts(len(x), rows):
        scale_of = partial(scales.of, tokens=tokens)
        mlp_residual_(out[part], block.norm2, block.mlp.fc1, block.mlp.fc2, block.ls2.gamma, scale_of)
    return out


def run_block_in_parts(
    block: nn.Module,
    x: Tensor,
    sequences: int,
    rope: Tensor | None,
    rows: int,
    at_once: int,
    scales: TokenScales = _NO_SPECIAL,
) -> Tensor:
    """`run_block` for at most `at_once` sequences at a time, where that bounds the qkv tensor."""
    length = len(x) // sequences
    out = torch.empty_like(x)
    for part in parts(sequences, at_once):
        tokens = slice(part.start * length, part.stop * length)
        run_block(block, x[tokens], part.stop - part.start, rope, rows, out[tokens], scales)
    return out


def _attention_output(
    block: Block, attn: Attention, x: Tensor, sequences: int, rope: Tensor | None, scales: TokenScales
) -> Tensor | Codes:
    """[M, C] -> [M, C], or the codes of it that the projection multiplies. A function of its own, so that the qkv
    tensor is gone when the projection starts.
    """
    qkv = norm_linear(x, block.norm1, attn.qkv, scale_of=scales.of).view(len(x), 3, attn.num_heads, -1)
    if rope is not None:
        q_norm, k_norm = attn.q_norm, attn.k_norm
        assert isinstance(q_norm, nn.LayerNorm)
        assert isinstance(k_norm, nn.LayerNorm)
        ops.qk_norm_rope_(qkv, q_norm.weight, q_norm.bias, k_norm.weight, k_norm.bias, rope, q_norm.eps)
    q, k, v = qkv.unflatten(0, (sequences, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    proj = attn.proj
    static = scales.of(proj) if takes_codes(proj) and not proj.rotation else None
    if static is not None and (codes := attention_codes(q, k, v, static)) is not None:
        return Codes(*codes)
    return attention(q, k, v, integers=takes_codes(attn.qkv)).flatten(0, 1)
