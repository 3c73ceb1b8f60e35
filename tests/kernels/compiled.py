"""Every kind of compiled CPU kernels as a library for tests: this machine's own, and those of others in plain C."""

import functools
import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vggt_int8.kernels.cpu import compiled, compiler, matmul

NAMES = ["own", "own without AMX", "own, small parts on 4 threads", "emulated VNNI", "emulated AMX"]
# For `parametrize`. The others are this machine's, or other machines' in plain C.
_SLOW = {name: [] if name.startswith("own") else [pytest.mark.slow] for name in NAMES}
LIBRARIES = [pytest.param(name, marks=_SLOW[name]) for name in NAMES]
_EMULATED = Path(__file__).with_name("emulated_tiles.h")
# The library in the cache is named by its flags.
_QUICKLY = "-O1"  # after -O3: a quarter of its time to compile, a fifth more to run
_EMULATION = [
    _QUICKLY,
    f'-DEMULATED_TILES="{_EMULATED}"',
    f"-DVERSION_{hashlib.sha256(_EMULATED.read_bytes()).hexdigest()}",
]
_SMALL_PARTS = [_QUICKLY, "-DHEADS_BYTES=40000", "-DFRAMES_CODES=2000"]


def crossed(first: Sequence[Any], second: Sequence[Any]) -> list[Any]:
    """For `parametrize` of a library and two values: this machine's own has all pairs of values, the others, which
    differ from it in instructions or sizes of parts, every value once at least.
    """
    pairs = list(itertools.product(first, second))
    each = [(first[i % len(first)], second[i % len(second)]) for i in range(max(len(first), len(second)))]
    return [
        pytest.param(name, *pair, marks=_SLOW[name]) for name in NAMES for pair in (pairs if name == "own" else each)
    ]


def use(name: str, monkeypatch: pytest.MonkeyPatch) -> compiled.Library:
    """Let the operators run on a library for the length of a test, which is skipped where there is none."""
    found = _load(name)
    if isinstance(found, str):
        pytest.skip(found)
    # Two names share a file, whose choice of instructions is one setting.
    found.functions.vi_init(int("AMX" in found.name))
    monkeypatch.setattr(compiled, "_load", lambda: found)
    if "threads" in name:
        monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    return found


def walled(x: Tensor) -> Tensor:
    """x between NaNs, which a kernel that reads beyond x brings to light."""
    wall = 64
    room = x.new_full((x.numel() + 2 * wall,), float("nan"))
    inside = room[wall:-wall].view(x.shape)
    return inside.copy_(x)


def without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the operators run on PyTorch's functions for the length of a test."""
    monkeypatch.setattr(compiled, "_load", lambda: "not in this test")
    monkeypatch.setattr(matmul, "cpu_int8_kernel", functools.cache(matmul.cpu_int8_kernel.__wrapped__))


@functools.cache
def _load(name: str) -> compiled.Library | str:
    if (reason := compiled.unavailable()) is not None:
        return reason
    flags = _EMULATION if name.startswith("emulated") else _SMALL_PARTS if "parts" in name else []
    amx = name not in ("own without AMX", "emulated VNNI")
    found = compiled.load(compiler.build(flags), amx)
    if name == "own without AMX" and compiled.load(compiler.build(), True).name == found.name:
        return "this CPU has no AMX"
    return found
