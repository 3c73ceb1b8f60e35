"""Random numbers for scenes: disjoint splits, and uniform draws that agree on all devices.

A scene is identified by a 64-bit seed: the split's number in the upper 16 bits, the scene's index in the lower 48. So
training never sees a held-out scene, whatever indices are used. Small plain integers (0, 1, 2, ...) belong to the split
"free", on which this project never trains.

Draws are counter-based: draw number i of a stream is splitmix64(stream + i * golden ratio), in integer arithmetic.
(PyTorch's CPU generator is unsuitable: it keeps only the lower 32 bits of a seed.) Each part of a scene has its own
stream, so that a change in one part does not affect the others. Source of the mixing function: Steele, Lea, Flood,
"Fast Splittable Pseudorandom Number Generators", 2014.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from vggt_int8.plain_data import check_integer

SPLITS = {"free": 0, "train": 1, "held_out": 2, "calibration": 3, "demo": 4}
INDEX_BITS = 48

GOLDEN = 0x9E3779B97F4A7C15


def scene_seeds(split: str, indices: Iterable[int]) -> Tensor:
    """The seeds [N] (int64) of scenes `indices` of a split (a key of `SPLITS`)."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
    indices = [index.item() if isinstance(index, Tensor) else index for index in indices]
    for index in indices:
        check_integer("a scene index", index)
    index_tensor = torch.tensor(indices, dtype=torch.int64)
    outside = (index_tensor < 0) | (index_tensor >= 1 << INDEX_BITS)
    if outside.any():
        raise ValueError(f"scene index {index_tensor[outside][0]} is outside 0 ... 2**{INDEX_BITS} - 1")
    return index_tensor + (SPLITS[split] << INDEX_BITS)


class Uniforms:
    """A stream of uniform draws for each of B scenes; every draw has shape [B, *shape]."""

    def __init__(self, seeds: Tensor, stream: int) -> None:
        """seeds [B] int64; `stream` is the number of an independent stream of each scene."""
        self._state = _mix(_mix(seeds.cpu()) + _signed((stream + 1) * GOLDEN))
        self._drawn = 0

    def __call__(self, *shape: int, low: float | Tensor = 0.0, high: float | Tensor = 1.0) -> Tensor:
        """Uniform fp32 in [low, high), shape [B, *shape]; tensor bounds are broadcast against it."""
        count = math.prod(shape)
        counter = torch.arange(self._drawn + 1, self._drawn + count + 1)
        self._drawn += count
        bits = _mix(self._state[:, None] + counter * _signed(GOLDEN))
        unit = (bits >> 40 & 0xFFFFFF).float() / (1 << 24)
        return unit.view(-1, *shape) * (high - low) + low

    def chance(self, probability: float, *shape: int) -> Tensor:
        """True with this probability, [B, *shape] bool."""
        return self(*shape) < probability

    def choice(self, options: int, *shape: int) -> Tensor:
        """An integer in 0 ... options - 1, [B, *shape] int64."""
        return (self(*shape) * options).long()

    def pick(self, weights: list[float], *shape: int) -> Tensor:
        """An index into `weights`, drawn in proportion to them, [B, *shape] int64."""
        edges = torch.tensor(weights).cumsum(0) / sum(weights)
        return torch.bucketize(self(*shape), edges[:-1], right=True)


def _mix(z: Tensor) -> Tensor:
    """splitmix64's finaliser: a bijection on 64-bit integers (int64 arithmetic wraps)."""
    z = (z ^ _shift_right(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift_right(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical shift: int64 would drag the sign along."""
    return z >> bits & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value
