"""Building blocks of the encoder, the aggregator and the camera head: attention with 2-D RoPE, MLP, pre-norm block.

Every linear is called as a module and its attributes are never read, so it can be replaced by a quantized one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggt_int8.quiet import quiet_import
from vggt_int8.shards import FrameShard

with quiet_import():  # imports torchao, which prints
    from transformers.modeling_layers import GradientCheckpointingLayer


def apply_rope(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate queries or keys. x [B, H, F * P, D] holds F frames of P tokens, rope [2, P, D] fp32 -> like x.

    The fp32 table makes this an fp32 island: the result is rounded to x's dtype once, at the end.
    """
    cos, sin = rope.unbind(0)
    frames = x.unflatten(-2, (-1, cos.shape[-2]))
    row_a, row_b, column_a, column_b = frames.chunk(4, dim=-1)
    quarter_turn = torch.cat([-row_b, row_a, -column_b, column_a], dim=-1)
    return (frames * cos + quarter_turn * sin).flatten(-3, -2).to(x.dtype)


def first_and_other_frames(tokens: Tensor, batch: int, frames: int, has_first: bool = True) -> Tensor:
    """[1, 2, ...] -> [B, S, ...]: entry 0 for the first frame, which is the world frame, entry 1 for all others.

    has_first: False if the first frame of the scene is not among these frames.
    """
    first, other = tokens.expand(batch, *tokens.shape[1:]).split(1, dim=1)
    if not has_first:
        return other.expand(-1, frames, *tokens.shape[2:])
    if frames == 1:  # ONNX has no expansion to no frames
        return first
    return torch.cat([first, other.expand(-1, frames - 1, *tokens.shape[2:])], dim=1)


def key_frames(frames: int, count: int, *, device: torch.device) -> Tensor:
    """Indices of `count` <= `frames` key frames, int64 [count] ascending: frame 0, and the others evenly spaced.

    Computed on the device, so that a CUDA graph can capture it.
    """
    return torch.arange(count, device=device) * frames // count


def seen_by_all(k: Tensor, v: Tensor, keyframes: int | None, shard: FrameShard) -> tuple[Tensor, Tensor]:
    """Keys and values [B, H, s * P, D] of a shard's frames -> those of all frames that a scene's queries attend to.

    keyframes: the number of these frames, None for all.
    """
    chosen, counts = shard.key_frames(keyframes)
    frames = torch.stack([k, v], dim=1).unflatten(3, (shard.counts[shard.rank], -1)).movedim(3, 1)
    k, v = shard.gather(frames[:, chosen], counts).movedim(1, 3).flatten(3, 4).unbind(1)
    return k, v


class Attention(nn.Module):
    """Self-attention within each sequence of x; `qk_norm` normalizes queries and keys over the head dim.

    The linears process the tokens as they come, frame by frame. With `scenes`, the number of scenes, the frames of each
    scene are joined into one sequence for attention itself. With `keyframes`, all queries of a scene attend to the keys
    and values of that many of its frames (see `key_frames`), which must be fewer than all. With a `shard`, x holds its
    frames, and the keys and values of the scene are gathered from all processes.

    projection, rotate: class of the qkv linear; function that applies positions to queries and keys.
    """

    projection: type[nn.Linear] = nn.Linear
    rotate = staticmethod(apply_rope)

    def __init__(self, dim: int, num_heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = self.projection(dim, 3 * dim)
        self.q_norm = nn.LayerNorm(dim // num_heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(dim // num_heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def forward(
        self,
        x: Tensor,
        rope: Tensor | None = None,
        scenes: int | None = None,
        keyframes: int | None = None,
        shard: FrameShard | None = None,
    ) -> Tensor:
        qkv = self.qkv(x)
        if scenes is not None:
            qkv = qkv.unflatten(0, (scenes, -1)).flatten(1, 2)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = self.rotate(q, rope), self.rotate(k, rope)
        if scenes is not None and shard is not None:
            k, v = seen_by_all(k, v, keyframes, shard)
        elif scenes is not None and keyframes is not None:
            frames = len(x) // scenes
            chosen = key_frames(frames, keyframes, device=x.device)
            k, v = (t.unflatten(2, (frames, -1)).index_select(2, chosen).flatten(2, 3) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.proj(y if scenes is None else y.reshape(x.shape))


class Mlp(nn.Module):
    """Two linears with a GELU between them."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch, small at the start of training."""

    def __init__(self, dim: int, init_value: float) -> None:
        super().__init__()
        self.init_value = init_value
        self.gamma = nn.Parameter(torch.full((dim,), init_value))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(GradientCheckpointingLayer):
    """Pre-norm transformer block. x [B, N, C] -> [B, N, C]; `rope` as `attention` takes it, None for no RoPE.

    scenes: None for attention within each of the B sequences; else the number of scenes whose frames they are, in
        order, for attention within each scene.
    keyframes: with `scenes`, the number of frames whose keys a query attends to; None for all.
    shard: the frames of this process, if the scene is sharded.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        *,
        qk_norm: bool = False,
        norm_eps: float = 1e-5,
        layer_scale: float = 0.01,
        attention: type[Attention] = Attention,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = attention(dim, num_heads, qk_norm)
        self.ls1 = LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), dim)
        self.ls2 = LayerScale(dim, layer_scale)

    def forward(
        self,
        x: Tensor,
        rope: Tensor | None = None,
        scenes: int | None = None,
        keyframes: int | None = None,
        shard: FrameShard | None = None,
    ) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x), rope, scenes, keyframes, shard))
        return x + self.ls2(self.mlp(self.norm2(x)))
