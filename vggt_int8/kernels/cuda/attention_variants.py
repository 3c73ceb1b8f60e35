"""Selects the variant of the attention kernel from a table, so that nothing is tuned at start-up.

Does not import Triton. `benchmarks/attention.py` measures the candidates of this table on a GPU.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch


@dataclass(frozen=True)
class Variant:
    """How one program attends: block_m queries, block_n keys at a time.

    tma: operands are loaded through tensor descriptors (compute capability 9.0 or higher), otherwise through pointers.
    frozen: the loop subtracts an estimate of the row maximum, computed beforehand, so it contains neither a maximum nor
        a rescaling. A tile whose scores exceed the estimate by 2^16 is recomputed with the maximum: the result is right
        for every input.
    registers: queries are register operands, which saves a third of the reads from shared memory; for frozen tiles of
        64 queries, which fit in the registers of four warps.
    grouped: the kernel of `gluon_attention.py`, which is frozen and has one additional warp.
    """

    block_m: int
    block_n: int
    warps: int
    stages: int
    tma: bool = False
    frozen: bool = False
    registers: bool = False
    grouped: bool = False

    @property
    def kernel(self) -> str:
        """Name of the kernel, for reports."""
        return f"{'Gluon' if self.grouped else 'Triton'} {self}"

    def __str__(self) -> str:
        parts = [f"{self.block_m}x{self.block_n}", f"w{self.warps}", f"s{self.stages}"]
        switches = ("tma", "frozen", "registers", "grouped")
        return " ".join(parts + [name for name in switches if getattr(self, name)])


class Rule(NamedTuple):
    """`variant` for GPUs of compute capability `arch` / 10 or higher (up to 9.0) and at least `tokens` tokens."""

    arch: int
    tokens: int
    variant: Variant


_AMPERE = Variant(128, 64, 8, 3)  # also of Ada
_HOPPER = Variant(128, 64, 8, 3, tma=True, frozen=True)
_HOPPER_SHORT = Variant(64, 64, 4, 3, tma=True, frozen=True, registers=True)  # frames do not fill tiles of 128
_HOPPER_LONG = Variant(256, 64, 16, 4, tma=True, frozen=True, grouped=True)
# The first matching rule applies. Measured on Hopper only.
RULES = (
    Rule(90, 8192, _HOPPER_LONG),
    Rule(90, 2048, _HOPPER),
    Rule(90, 0, _HOPPER_SHORT),
    Rule(80, 0, _AMPERE),
)
AGAIN = Variant(64, 64, 4, 3, tma=True)  # for queries that the grouped kernel could not finish
SMALL = Variant(64, 32, 4, 2)  # for fp32 and for head dims above 64, whose blocks are larger


def candidates(arch: int) -> tuple[Variant, ...]:
    """The variants that `benchmarks/attention.py` measures on architecture `arch`, simplest first."""
    if arch != 90:
        shapes = (Variant(128, 64, 8, 3), Variant(128, 64, 4, 3), Variant(64, 64, 4, 3), Variant(128, 32, 8, 3))
        return tuple(replace(v, frozen=frozen) for v in shapes for frozen in (False, True))
    narrow, small = Variant(128, 64, 8, 3, tma=True), Variant(64, 64, 4, 3, tma=True, frozen=True)
    return (
        narrow,
        _HOPPER,
        _HOPPER_LONG,
        replace(_HOPPER_LONG, stages=8),
        _HOPPER_SHORT,
        replace(_HOPPER_SHORT, stages=2),
        replace(_HOPPER_SHORT, stages=4),
        replace(narrow, frozen=True, registers=True),
        Variant(256, 64, 16, 3, tma=True, frozen=True),
        Variant(256, 64, 16, 2, tma=True, frozen=True),
        Variant(256, 64, 8, 3, tma=True, frozen=True),
        replace(narrow, stages=2, frozen=True),
        replace(narrow, warps=4),
        replace(narrow, warps=4, frozen=True),
        replace(narrow, block_n=128, frozen=True),
        replace(narrow, block_n=32, stages=4, frozen=True),
        replace(narrow, stages=4, frozen=True),
        small,
        replace(small, stages=2),
        Variant(64, 32, 4, 4, tma=True, frozen=True),
    )


def attention_variant(arch: int, tokens: int, dim: int, dtype: torch.dtype, grouped: bool = True) -> Variant:
    """The variant for sequences of `tokens` on architecture `arch` (10 * major + minor). grouped: whether the operands
    suit the grouped kernel, which also requires a head dim of 64.
    """
    if arch < 80:
        raise ValueError(f"the attention kernel needs a GPU of compute capability 8.0 or newer, not {arch / 10}")
    if dim > 64 or dtype == torch.float32:
        return SMALL
    arch = 89 if arch > 90 else arch  # what fits Ada fits everywhere
    rules = (r for r in RULES if not r.variant.grouped or (grouped and dim == 64))
    return next(r.variant for r in rules if arch >= r.arch and tokens >= r.tokens)
