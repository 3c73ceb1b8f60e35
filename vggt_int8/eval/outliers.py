"""Makes a network hard to quantize without changing what it computes.

A small model trained for an hour has none of the outlier channels of VGGT-1B, so it would flatter every recipe.
Here some channels are scaled up where they are written and down where they are read:
- LayerNorm channels before the qkv and fc1 linears: weight and bias up, the linear's columns down;
- value channels: rows of qkv up, columns of the attention's output projection down.

The factors are powers of two, so every product and sum keeps its bits: in fp32 the function is not nearly, but
exactly the same. Activations then span a range that one static scale per tensor cannot hold, and weight
columns shrink below what their row's scale resolves, as in the real model.

What this cannot make, for want of a transform that keeps every bit: outliers at the input of fc2, since GELU(c x) is
not c GELU(x), and outlier tokens. Those are made by `vggt_int8.eval.outlier_tokens`.
"""

import copy
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)

FACTORS = (16.0, 32.0)  # within the x10 - x50 of the real model


def with_outliers(model: Model, seed: int, *, share: float = 0.015, factors: tuple[float, ...] = FACTORS) -> Model:
    """A copy of `model` (in fp32) that computes the same function with outlier channels.

    share: of the channels, at least one a layer. factors: powers of two, drawn at random. Every transformer block of
    the model (anything with `norm1`, `attn.qkv`, `attn.proj`, `norm2`, `mlp.fc1`) is treated; the same seed gives the
    same channels. Raises ValueError on other factors, a share outside (0, 1], a model without such blocks, or
    weights that are not fp32.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")
    if any(torch.frexp(torch.tensor(factor)).mantissa != 0.5 for factor in factors):
        raise ValueError(f"factors must be positive powers of two, or the function would change; got {factors}")
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    blocks = list(transformer_blocks(model))
    if not blocks:
        raise ValueError(f"{type(model).__name__} has no transformer blocks (norm1, attn, norm2, mlp)")
    with torch.no_grad():
        for name, block in blocks:
            if block.attn.qkv.weight.dtype != torch.float32:
                raise ValueError(f"{name} is {block.attn.qkv.weight.dtype}; outliers are made in fp32")
            for norm, reader in ((block.norm1, block.attn.qkv), (block.norm2, block.mlp.fc1)):
                channels, scale = _draw(norm.weight.numel(), share, factors, generator, norm.weight.device)
                norm.weight[channels] *= scale
                norm.bias[channels] *= scale
                reader.weight[:, channels] /= scale
            _scale_values(block.attn, share, factors, generator)
    return model


def _scale_values(attention: Any, share: float, factors: tuple[float, ...], generator: torch.Generator) -> None:
    """Attention mixes tokens, not channels: a value channel's factor comes out where the projection reads it."""
    width = attention.proj.in_features
    channels, scale = _draw(width, share, factors, generator, attention.proj.weight.device)
    rows = 2 * width + channels  # qkv holds queries, keys, values
    attention.qkv.weight[rows] *= scale[:, None]
    if attention.qkv.bias is not None:
        attention.qkv.bias[rows] *= scale
    attention.proj.weight[:, channels] /= scale


def _draw(
    width: int, share: float, factors: tuple[float, ...], generator: torch.Generator, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Channel indices and a factor for each."""
    count = max(1, round(share * width))
    channels = torch.randperm(width, generator=generator)[:count]
    chosen = torch.randint(len(factors), (count,), generator=generator)
    return channels.to(device), torch.tensor(factors)[chosen].to(device)


def transformer_blocks(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Name and module of everything with `norm1`, `attn.qkv`, `norm2` and `mlp`."""
    for name, module in model.named_modules():
        parts = ("norm1", "attn", "norm2", "mlp")
        if all(hasattr(module, part) for part in parts) and hasattr(module.attn, "qkv"):
            yield name, module
