"""The aggregator on fused blocks: the image encoder and frame blocks run on a few frames at a time, global blocks on
all.
"""

from collections.abc import Callable, Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggt_int8.global_attention import GlobalAttention
from vggt_int8.kernels.attended import global_block
from vggt_int8.model.aggregator import describe
from vggt_int8.model.encoder import Encoder
from vggt_int8.model.layers import first_and_other_frames
from vggt_int8.model.tables import image_statistics, rope_table
from vggt_int8.runtime.blocks import run_block, run_block_in_parts, run_keyframe_block
from vggt_int8.runtime.kept import Half, Halves
from vggt_int8.runtime.memory import Plan, parts
from vggt_int8.runtime.token_scales import TokenScales
from vggt_int8.shards import FrameShard


def run_aggregator(
    aggregator: Any,
    images: Tensor,
    layers: Collection[int],
    attention: GlobalAttention,
    plan: Plan,
    descriptors: bool = False,
    *,
    shard: FrameShard | None = None,
    encode: Callable[..., Tensor] | None = None,
    blocks_of: "type[Blocks] | None" = None,
) -> tuple[dict[int, Halves], Tensor | None]:
    """Images [B, S, 3, H, W] in [0, 1] -> tokens of the requested layers, and descriptors [B, S, C] if requested.

    shard: the frames of this process, if the scene is sharded.
    encode, blocks_of: the image encoder and the blocks of another network; None for VGGT's.

    Blocks after the last requested layer do not run.
    """
    blocks = (blocks_of or Blocks)(aggregator, images, attention, plan, shard)
    patches = images.shape[-2] * images.shape[-1] // aggregator.patch_size**2
    token = aggregator.camera_token
    shape = (images.shape[0] * images.shape[1], patches + aggregator.num_special, token.shape[-1])
    buffers = {layer: _buffers(token, shape, layer, layers, plan) for layer in sorted(layers)}
    x = _embed(aggregator, images, plan, encode or _encode, shard is None or shard.has_first)
    described = describe(x, aggregator.num_special).unflatten(0, images.shape[:2]) if descriptors else None
    x = x.flatten(0, 1)
    kept, own = {}, True  # own: nothing else refers to x, so a block may overwrite it
    for layer in range(max(layers) + 1):
        x = blocks.frame(layer, x, x if own else None)
        if layer not in layers:
            x, own = blocks.scene(layer, x, x), True
            continue
        copies = buffers.pop(layer)
        own = copies is not None
        frame = Half([x.view(shape)]) if copies is None else copies.frame.fill(x.view(shape))
        x = blocks.scene(layer, x, x if own else None)
        scene = Half([x.view(shape)]) if copies is None else copies.scene.fill(x.view(shape))
        kept[layer] = Halves(frame, scene)
    return kept, described


def _buffers(
    like: Tensor, shape: tuple[int, int, int], layer: int, layers: Collection[int], plan: Plan
) -> Halves | None:
    """Buffers for copies of a layer's tokens, or None if the tokens are kept without a copy. The last layer's tokens
    are no block's input, so copying them would only take more memory.
    """
    on_host = sorted(layers).index(layer) < plan.layers_on_host
    if not on_host and (not plan.in_pieces or layer == max(layers)):
        return None
    return Halves(Half.empty(like, shape, on_host), Half.empty(like, shape, on_host))


class Blocks:
    """The aggregator's blocks during one call, as functions of tokens [B * S * P, C] and of the tensor to write to."""

    aggregator: Any

    def __init__(
        self,
        aggregator: Any,
        images: Tensor,
        attention: GlobalAttention,
        plan: Plan,
        shard: FrameShard | None = None,
    ) -> None:
        self.batch, self.frames, _, height, width = images.shape
        self.aggregator, self.attention, self.plan, self.shard = aggregator, attention, plan, shard
        grid = (height // aggregator.patch_size, width // aggregator.patch_size)
        geometry = (*grid, aggregator.num_special, aggregator.head_dim, aggregator.rope_freq)
        self.rope = self.scene_rope = rope_table(*geometry, device=images.device)
        blocks = [*aggregator.frame_blocks, *aggregator.global_blocks]
        self.scales = TokenScales(blocks, self.rope.shape[1])

    def frame(self, layer: int, x: Tensor, out: Tensor | None) -> Tensor:
        return self._inside_frames(self.aggregator.frame_blocks[layer], self.rope, x, out)

    def scene(self, layer: int, x: Tensor, out: Tensor | None) -> Tensor:
        return self.between_frames(self.aggregator.global_blocks[layer], layer, x, out)

    def between_frames(self, block: nn.Module, layer: int, x: Tensor, out: Tensor | None) -> Tensor:
        """Run `block` on the tokens of all frames, with the attention that the call chose for this layer."""
        with global_block():
            return self._between_frames(block, layer, x, out)

    def _between_frames(self, block: nn.Module, layer: int, x: Tensor, out: Tensor | None) -> Tensor:
        rope, plan = self.scene_rope, self.plan
        frames = self.frames if self.shard is None else self.shard.frames
        if self.attention.looks(layer, frames) == "frames":
            return self._inside_frames(block, rope, x, out)
        keys = self.attention.keys(layer, frames)
        if keys is None and self.shard is None:
            return run_block(block, x, self.batch, rope, plan.rows, out, self.scales)
        parts_of = (plan.rows, plan.scene_frames)
        return run_keyframe_block(block, x, self.batch, keys, rope, *parts_of, out, self.scales, self.shard)

    def _inside_frames(self, block: nn.Module, rope: Tensor, x: Tensor, out: Tensor | None) -> Tensor:
        count, plan = self.batch * self.frames, self.plan
        return run_block_in_parts(block, x, count, rope, plan.rows, plan.frames, out, self.scales)


def _embed(
    aggregator: Any, images: Tensor, plan: Plan, encode: Callable[..., Tensor], has_first: bool = True
) -> Tensor:
    """Images [B, S, 3, H, W] -> tokens [B * S, P, C]: camera token and registers, then the encoded patches.

    encode: the image encoder; takes normalized images [f, 3, H, W], the patch grid and the rows at a time, and returns
        tokens [f, h * w, C].
    has_first: whether the images include the first frame of the scene.
    """
    batch, frames = images.shape[:2]
    special = torch.cat([aggregator.camera_token, aggregator.register_token], dim=2)
    special = first_and_other_frames(special, batch, frames, has_first).flatten(0, 1)
    images = images.flatten(0, 1)
    grid = (images.shape[-2] // aggregator.patch_size, images.shape[-1] // aggregator.patch_size)
    tokens = special.new_empty(len(images), special.shape[1] + grid[0] * grid[1], special.shape[2])
    tokens[:, : special.shape[1]] = special
    mean, std = image_statistics(device=images.device).unbind(0)
    for part in parts(len(images), plan.frames):
        pixels = ((images[part] - mean) / std).to(special.dtype)
        tokens[part, special.shape[1] :] = encode(aggregator.patch_embed, pixels, grid, plan.rows)
    return tokens


def _encode(encoder: Encoder, pixels: Tensor, grid: tuple[int, int], rows: int) -> Tensor:
    """Normalized images [f, 3, H, W] -> patch tokens [f, h * w, C]."""
    x = encoder.embed(encoder.patch_embed(pixels), *grid)
    shape, x = x.shape, x.flatten(0, 1)
    scales = TokenScales(encoder.blocks, shape[1])
    for block in encoder.blocks:
        x = run_block(block, x, len(pixels), None, rows, scales=scales)
    norm = encoder.norm
    x = x.view(shape)[:, encoder.num_special :]
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
