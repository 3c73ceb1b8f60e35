"""Every kind of compiled CPU kernels as a library for tests: this machine's own, and those of others in plain C."""

import functools
from pathlib import Path

import pytest

from vggt_int8.kernels import cpu, cpu_compiled

LIBRARIES = ["own", "own without AMX", "emulated VNNI", "emulated AMX"]
_EMULATED = Path(__file__).with_name("emulated_tiles.h")


def use(name: str, monkeypatch: pytest.MonkeyPatch) -> cpu_compiled.Library:
    """Let the operators run on a library for the length of a test, which is skipped where there is none."""
    found = _load(name)
    if isinstance(found, str):
        pytest.skip(found)
    # Two names share a file, whose choice of instructions is one setting.
    found.functions.vi_init(int("AMX" in found.name))
    monkeypatch.setattr(cpu_compiled, "_load", lambda: found)
    return found


def without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the operators run on PyTorch's functions for the length of a test."""
    monkeypatch.setattr(cpu_compiled, "_load", lambda: "not in this test")
    monkeypatch.setattr(cpu, "cpu_int8_kernel", functools.cache(cpu.cpu_int8_kernel.__wrapped__))


@functools.cache
def _load(name: str) -> cpu_compiled.Library | str:
    if (reason := cpu_compiled.unavailable()) is not None:
        return reason
    flags = [f'-DEMULATED_TILES="{_EMULATED}"'] if name.startswith("emulated") else []
    amx = name in ("own", "emulated AMX")
    found = cpu_compiled.load(cpu_compiled.build(flags), amx)
    if name == "own without AMX" and cpu_compiled.load(cpu_compiled.build(), True).name == found.name:
        return "this CPU has no AMX"
    return found
