"""One transformer block with fused kernels. It uses the tensors of the plain `Block` without copying them.

    LayerNorm + quantize -> qkv GEMM -> q/k norm + RoPE in place -> attention -> quantize -> proj GEMM + LayerScale + x
    LayerNorm + quantize -> fc1 GEMM + GELU -> quantize -> fc2 GEMM + LayerScale + x

There are no other passes over memory. With static scales the two separate quantizations need no pass: fc1 and attention
write INT8 codes. Layers that are not W8A8 run unfused. With key-frame attention, where all queries of a scene attend to
some of its frames, the keys of these frames are computed first, and everything else for a few frames at a time.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from vggt_int8.kernels import ops
from vggt_int8.model.layers import Attention, Block, key_frames
from vggt_int8.model.omega.layers import OmegaAttention
from vggt_int8.runtime.attention import attention, attention_codes
from vggt_int8.runtime.linear import Codes, linear_residual_, mlp_residual_, norm_linear, takes_codes
from vggt_int8.runtime.memory import parts
from vggt_int8.runtime.token_scales import TokenScales
from vggt_int8.shards import FrameShard

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
    """x [M, C], `sequences` of equal length with attention within each -> [M, C], in `out` or a new tensor.

    rope: [2, P, D] fp32, cosines and sines, or None for a block without q/k norm and RoPE.
    rows: number of rows that the MLP processes at a time, since its hidden activations are the widest of the block.
    scales: computed for this block if special tokens have static scales of their own; x then consists of whole frames.
    """
    assert isinstance(block, Block)
    y = _attention_output(block, block.attn, x, sequences, rope, scales)
    out = torch.empty_like(x) if out is None else out  # not before attention, which holds the most memory
    linear_residual_(out, y, block.attn.proj, block.ls1.gamma, x, scales.of)
    del y
    _mlp_(block, out, rows, scales)
    return out


def _mlp_(block: Block, x: Tensor, rows: int, scales: TokenScales) -> None:
    """The second half of a block, in place, in chunks of `rows` rows."""
    for part, tokens in scales.parts(len(x), rows):
        scale_of = partial(scales.of, tokens=tokens)
        mlp_residual_(x[part], block.norm2, block.mlp.fc1, block.mlp.fc2, block.ls2.gamma, scale_of)


def run_keyframe_block(
    block: nn.Module,
    x: Tensor,
    scenes: int,
    keyframes: int | None,
    rope: Tensor,
    rows: int,
    at_once: int,
    out: Tensor | None = None,
    scales: TokenScales = _NO_SPECIAL,
    shard: FrameShard | None = None,
) -> Tensor:
    """`run_block` with attention from all tokens of a scene to the tokens of its key frames.

    Keys and values are computed for the key frames only, and the rest for at most `at_once` frames at a time. `out` may
    be x. shard: the process's share of the frames, if a scene is distributed: keys and values are then gathered, those
    of all frames if `keyframes` is None.
    """
    assert isinstance(block, Block)
    per_frame, attn = rope.shape[1], block.attn
    frames = len(x) // scenes // per_frame
    whole = x.view(scenes, frames, per_frame, -1)
    if shard is not None:
        kv = _gathered(block, attn, whole, keyframes, rope, scales, shard)
    else:
        assert keyframes is not None, "which is `run_block`"
        seen = whole.index_select(1, key_frames(frames, keyframes, device=x.device))
        kv = _keys_and_values(block, attn, seen.flatten(0, 2), rope, scales)
    k, v = _heads(kv, scenes)
    out = torch.empty_like(x) if out is None else out
    for scene, part in _frames_in_parts(scenes, frames, at_once):
        tokens = slice(
            (scene.start * frames + part.start) * per_frame, ((scene.stop - 1) * frames + part.stop) * per_frame
        )
        y = _attention_to(block, attn, x[tokens], k[scene], v[scene], rope, scales)
        linear_residual_(out[tokens], y, attn.proj, block.ls1.gamma, x[tokens], scales.of)
        del y
        _mlp_(block, out[tokens], rows, scales)
    return out


def _frames_in_parts(scenes: int, frames: int, at_once: int) -> Iterator[tuple[slice, slice]]:
    """Split into the fewest parts of at most `at_once` frames: of several whole scenes, or of one scene."""
    if at_once >= frames:
        for part in parts(scenes, at_once // frames):
            yield part, slice(0, frames)
    else:
        for scene in range(scenes):
            for part in parts(frames, at_once):
                yield slice(scene, scene + 1), part


def run_block_in_parts(
    block: nn.Module,
    x: Tensor,
    sequences: int,
    rope: Tensor | None,
    rows: int,
    at_once: int,
    out: Tensor | None = None,
    scales: TokenScales = _NO_SPECIAL,
) -> Tensor:
    """`run_block` for at most `at_once` sequences at a time, which limits the size of the qkv tensor. `out` may
    be x.
    """
    length = len(x) // sequences
    out = torch.empty_like(x) if out is None else out
    for part in parts(sequences, at_once):
        tokens = slice(part.start * length, part.stop * length)
        run_block(block, x[tokens], part.stop - part.start, rope, rows, out[tokens], scales)
    return out


def _attention_output(
    block: Block, attn: Attention, x: Tensor, sequences: int, rope: Tensor | None, scales: TokenScales
) -> Tensor | Codes:
    """[M, C] -> attention output [M, C], or its INT8 codes for the projection. This is a separate function so that the
    qkv tensor is freed before the projection starts.
    """
    qkv = norm_linear(x, block.norm1, attn.qkv, scale_of=scales.of).view(len(x), 3, attn.num_heads, -1)
    if rope is not None:
        _turn_(qkv, attn, rope)
    q, k, v = _heads(qkv, sequences)
    return _attended(attn, q, k, v, scales)


def _turn_(qkv: Tensor, attn: Attention, rope: Tensor) -> None:
    """Apply q/k norm and rotary embedding of `attn` to the queries and keys of qkv [M, 3, H, D], in place."""
    halves = isinstance(attn, OmegaAttention)
    if isinstance(attn.q_norm, nn.LayerNorm) and isinstance(attn.k_norm, nn.LayerNorm):
        norms = (attn.q_norm.weight, attn.q_norm.bias, attn.k_norm.weight, attn.k_norm.bias)
        ops.qk_norm_rope_(qkv, *norms, rope, attn.q_norm.eps, halves)
    else:
        ops.qk_norm_rope_(qkv, None, None, None, None, rope, 0.0, halves)


def _keys_and_values(block: Block, attn: Attention, x: Tensor, rope: Tensor, scales: TokenScales) -> Tensor:
    """Tokens [M, C] -> their keys and values [M, 2, H, D]."""
    channels, k_norm = attn.qkv.out_features // 3, attn.k_norm
    assert isinstance(k_norm, nn.LayerNorm)
    kv = norm_linear(x, block.norm1, attn.qkv, scale_of=scales.of, outputs=slice(channels, None))
    kv = kv.view(len(x), 2, attn.num_heads, -1)
    ops.norm_rope_(kv, k_norm.weight, k_norm.bias, rope, k_norm.eps)
    return kv


def _gathered(
    block: Block,
    attn: Attention,
    x: Tensor,
    keyframes: int | None,
    rope: Tensor,
    scales: TokenScales,
    shard: FrameShard,
) -> Tensor:
    """Tokens of a shard's frames [B, s, P, C] -> keys and values of all attended frames, [B * K * P, 2, H, D]."""
    own, counts = shard.key_frames(keyframes)
    shape = (len(x), len(own), x.shape[2], 2, attn.num_heads, x.shape[3] // attn.num_heads)
    if own:  # kernels know no tensors without rows
        x = x if len(own) == x.shape[1] else x.index_select(1, torch.tensor(own, device=x.device))
        kv = _keys_and_values(block, attn, x.flatten(0, 2), rope, scales).view(shape)
    else:
        kv = x.new_empty(shape)
    return shard.gather(kv, counts).flatten(0, 2)


def _attention_to(
    block: Block, attn: Attention, x: Tensor, k: Tensor, v: Tensor, rope: Tensor, scales: TokenScales
) -> Tensor | Codes:
    """`_attention_output` of x [M, C], tokens of len(k) scenes, with given keys and values."""
    channels, q_norm = attn.qkv.out_features // 3, attn.q_norm
    assert isinstance(q_norm, nn.LayerNorm)
    q = norm_linear(x, block.norm1, attn.qkv, scale_of=scales.of, outputs=slice(channels))
    q = q.view(len(x), 1, attn.num_heads, -1)
    ops.norm_rope_(q, q_norm.weight, q_norm.bias, rope, q_norm.eps)
    return _attended(attn, _heads(q, len(k))[0], k, v, scales)


def _heads(x: Tensor, sequences: int) -> tuple[Tensor, ...]:
    """[M, n, H, D] -> n views [B, H, M / B, D]."""
    return x.unflatten(0, (sequences, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def _attended(attn: Attention, q: Tensor, k: Tensor, v: Tensor, scales: TokenScales) -> Tensor | Codes:
    """Attention output in the format that the projection needs."""
    proj = attn.proj
    static = scales.of(proj) if takes_codes(proj) and not proj.rotation else None
    if static is not None and (codes := attention_codes(q, k, v, static)) is not None:
        return Codes(*codes)
    return attention(q, k, v, integers=takes_codes(attn.qkv)).flatten(0, 1)
