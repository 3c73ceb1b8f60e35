"""What the tests of Triton kernels share: where they run, inputs, and how results are compared."""

import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from vggt_int8.kernels.cuda.tiles import Tile

IN_THIS_PROCESS = os.environ.get("TRITON_INTERPRET") == "1"
INTERPRETED = IN_THIS_PROCESS or not torch.cuda.is_available()
if INTERPRETED:
    from tests.kernels.cuda import interpreted

    interpreted.prepare()

DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
BLOCK = 16 if INTERPRETED else 64
TILES = [
    Tile(BLOCK, BLOCK, 64, 4, 2),
    Tile(BLOCK, BLOCK, 64, 4, 2, split_k=3),
    Tile(BLOCK, 2 * BLOCK, 64, 4, 3, tma=True),
    Tile(BLOCK, BLOCK, 64, 4, 3, tma=True, per_sm=1),
    Tile(BLOCK, BLOCK, 64, 4, 3, tma=True, split_k=2, group_m=1),
    Tile(BLOCK, 2 * BLOCK, 64, 4, 3, tma=True, per_sm=1, parts=2),
]


def quick(chosen: Callable[[Any], bool], values: Sequence[Any]) -> list[Any]:
    """Values for `parametrize`: those that are not chosen are `slow` where they are interpreted."""
    marks = [pytest.mark.slow] if INTERPRETED else []
    return [value if chosen(value) else pytest.param(value, marks=marks) for value in values]


def pairwise(*values: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Of three lists, the last of which is the shortest: all combinations on a GPU, and in the interpreter so many that
    any two values of two lists are in one.
    """
    assert len(values) == 3
    assert len(values[2]) <= min(len(values[0]), len(values[1])), "else a value of the last meets not all others"
    return [
        tuple(of[i] for of, i in zip(values, places, strict=True))
        for places in itertools.product(*(range(len(of)) for of in values))
        if not INTERPRETED or (places[0] + places[1]) % len(values[2]) == places[2]
    ]


def on_gpu(test: Callable[..., None]) -> Callable[..., None]:
    """For a GPU alone: its sizes or what it does take one."""
    return pytest.mark.gpu(pytest.mark.skipif(INTERPRETED, reason="sizes for a GPU")(test))


def has_descriptors() -> bool:
    return INTERPRETED or torch.cuda.get_device_capability() >= (9, 0)


def rand(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype)


def hard_rows(m: int, k: int, dtype: torch.dtype) -> Tensor:
    x = rand(m, k, dtype=dtype) * 2
    if m >= 5:
        x[1], x[2, k // 2], x[3], x[4] = 0, 6e4, x[3] * 1e-4, x[4] * 500
    return x


def static_scales_of(m: int) -> dict[str, Tensor]:
    """For m rows: one, some that take turns, one for each. No round numbers: bf16 lies between two codes of them."""
    counts = {"one": 1, "take turns": next((r for r in (3, 5, 2) if m % r == 0), 1), "for each row": m}
    return {name: torch.linspace(0.02037, 0.04911, count, device=DEVICE)[:, None] for name, count in counts.items()}


def codes(*shape: int) -> Tensor:
    return torch.randint(-127, 128, shape, device=DEVICE, dtype=torch.int8)


def assert_same_codes(got: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor]) -> None:
    """Scales to fp32 rounding; a code may differ by one where rounding was a near tie, and is never -128."""
    torch.testing.assert_close(got[1], want[1], rtol=1e-5, atol=0)
    assert (got[0] >= -127).all()
    off = (got[0].int() - want[0].int()).abs()
    assert off.max() <= 1
    assert off.float().mean() < 1e-3


def assert_same(got: Tensor, want: Tensor) -> None:
    """Within one unit in the last place of the output's dtype; small values within rounding of the row's sums."""
    assert got.dtype == want.dtype
    got, want, eps = got.float(), want.float(), torch.finfo(want.dtype).eps
    largest = want.abs().nan_to_num(posinf=0).amax(dim=-1, keepdim=True)
    close = (got - want).abs() <= eps * want.abs() + 2e-6 * largest
    assert (close | (got == want)).all()  # equal also holds for what overflows in both
