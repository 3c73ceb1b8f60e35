"""The aggregator on fused blocks: the image encoder and the frame blocks a few frames at a time, the global blocks
on all.

The result of a layer is its frame and its global tokens side by side. Both exist as tensors of their own anyway, so
they are kept as two halves, which costs no copy; whoever reads them joins the frames it works on.
"""

from collections.abc import Collection
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vggt_int8.global_attention import GlobalAttention
from vggt_int8.model.aggregator import Aggregator
from vggt_int8.model.encoder import Encoder
from vggt_int8.model.layers import first_and_other_frames, key_frames
from vggt_int8.model.tables import image_statistics, rope_table
from vggt_int8.runtime.blocks import run_block, run_block_in_parts, run_keyframe_block
from vggt_int8.runtime.memory import Plan, parts
from vggt_int8.runtime.token_scales import TokenScales


class Halves(NamedTuple):
    """Tokens of one layer, [F, P, C] each, F = B * S frames; on the device, or on the host where memory is short."""

    frame: Tensor
    scene: Tensor

    def of(self, frames: slice, device: torch.device) -> tuple[Tensor, Tensor]:
        """Both halves of some frames, on `device`."""
        return self.frame[frames].to(device), self.scene[frames].to(device)

    def camera_tokens(self, device: torch.device) -> Tensor:
        """The first token of every frame, [F, 2C]."""
        return torch.cat([half[:, 0].to(device) for half in self], dim=-1)


def run_aggregator(
    aggregator: Aggregator, images: Tensor, layers: Collection[int], attention: GlobalAttention, plan: Plan
) -> dict[int, Halves]:
    """Images [B, S, 3, H, W] in [0, 1] -> the layers asked for; no block behind the last of them runs."""
    batch, frames, _, height, width = images.shape
    tokens = _embed(aggregator, images, plan)
    grid = (height // aggregator.patch_size, width // aggregator.patch_size)
    geometry = (*grid, aggregator.num_special, aggregator.head_dim, aggregator.rope_freq)
    rope = rope_table(*geometry, device=tokens.device)
    shape, x = tokens.shape, tokens.flatten(0, 1)
    del tokens
    scales = TokenScales([*aggregator.frame_blocks, *aggregator.global_blocks], shape[1])
    kept = {}
    for layer in range(max(layers) + 1):
        at_once = (batch * frames, rope, plan.rows, plan.frames)
        x = run_block_in_parts(aggregator.frame_blocks[layer], x, *at_once, scales=scales)
        frame, block = x, aggregator.global_blocks[layer]
        looks, keys = attention.looks(layer, frames), attention.keys(layer, frames)
        if looks == "frames":
            x = run_block_in_parts(block, x, *at_once, scales=scales)
        elif keys is not None:
            chosen = key_frames(frames, keys, device=x.device)
            x = run_keyframe_block(block, x, batch, chosen, rope, plan.rows, plan.scene_frames, scales=scales)
        else:
            x = run_block(block, x, batch, rope, plan.rows, scales=scales)
        if layer in layers:
            halves = (frame.view(shape), x.view(shape))
            kept[layer] = Halves(*(half.cpu() if plan.tokens_on_host else half for half in halves))
    return kept


def _embed(aggregator: Aggregator, images: Tensor, plan: Plan) -> Tensor:
    """Images [B, S, 3, H, W] -> tokens [B * S, P, C]: camera token and registers, then the encoded patches."""
    batch, frames = images.shape[:2]
    special = torch.cat([aggregator.camera_token, aggregator.register_token], dim=2)
    special = first_and_other_frames(special, batch, frames).flatten(0, 1)
    images = images.flatten(0, 1)
    grid = (images.shape[-2] // aggregator.patch_size, images.shape[-1] // aggregator.patch_size)
    tokens = special.new_empty(len(images), special.shape[1] + grid[0] * grid[1], special.shape[2])
    tokens[:, : special.shape[1]] = special
    mean, std = image_statistics(device=images.device).unbind(0)
    for part in parts(len(images), plan.frames):
        pixels = ((images[part] - mean) / std).to(special.dtype)
        tokens[part, special.shape[1] :] = _encode(aggregator.patch_embed, pixels, grid, plan.rows)
    return tokens


def _encode(encoder: Encoder, pixels: Tensor, grid: tuple[int, int], rows: int) -> Tensor:
    """Normalised images [f, 3, H, W] -> patch tokens [f, h * w, C]."""
    x = encoder.embed(encoder.patch_embed(pixels), *grid)
    shape, x = x.shape, x.flatten(0, 1)
    scales = TokenScales(encoder.blocks, shape[1])
    for block in encoder.blocks:
        x = run_block(block, x, len(pixels), None, rows, scales=scales)
    norm = encoder.norm
    x = x.view(shape)[:, encoder.num_special :]
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
