"""Measures INT8 GEMM tiles on this GPU and writes the table that `tiles.py` reads. Offline: never called at run time.

    vggt-int8 tune --out tiles.json --seconds 180

A size is timed as in the network: calls follow one another in a CUDA graph, each with its own weights, which together
exceed the L2 cache, and with the same activations. A tile counts only if its result equals the reference.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from vggt_int8.difference import Difference
from vggt_int8.kernels import reference
from vggt_int8.kernels.cuda import tiles, triton_gemm
from vggt_int8.kernels.cuda.launch import compiling
from vggt_int8.kernels.cuda.tiles import Size, Tile
from vggt_int8.kernels.epilogue import Epilogue
from vggt_int8.machine import architecture

TOKENS = 1041  # per frame, at 392 x 518 pixels
FRAMES = (10, 1, 4, 32, 100)
WEIGHT_BYTES = 160 << 20  # of distinct weights per timing: more than two L2 caches
GROUPS = (4, 16, 32)  # tried with the best tile of a size, whose group_m is 8


@dataclass(frozen=True)
class Linear:
    """One of the four linears of a VGGT-1B block, with its epilogue; the residual may be added elsewhere."""

    name: str
    n: int
    k: int
    gelu: bool = False
    residual: bool = False


LINEARS = (
    Linear("qkv", 3072, 1024),
    Linear("proj", 1024, 1024, residual=True),
    Linear("fc1", 4096, 1024, gelu=True),
    Linear("fc2", 1024, 4096, residual=True),
    Linear("proj, no residual", 1024, 1024),
    Linear("fc2, no residual", 1024, 4096),
)


@dataclass
class Operands:
    """Random operands of a linear at M rows, with as many `weights` as one timing needs."""

    x: Tensor
    x_scale: Tensor
    weights: list[Tensor]
    weight_scale: Tensor
    bias: Tensor
    gelu: bool
    gamma: Tensor | None
    residual: Tensor | None

    def call(self, weight: Tensor, tile: Tile | None) -> Tensor:
        epilogue = Epilogue(self.bias, torch.float16, self.gelu, self.gamma, self.residual)
        return triton_gemm.int8_gemm(self.x, self.x_scale, weight, self.weight_scale, epilogue, tile)

    def check(self, tile: Tile) -> float:
        """Largest error of the first and last rows, relative to the largest value there; NaN if not finite."""
        got = self.call(self.weights[0], tile)
        found = Difference()
        for rows in (slice(0, 256), slice(-256, None)):
            residual = None if self.residual is None else self.residual[rows]
            epilogue = Epilogue(self.bias, torch.float32, self.gelu, self.gamma, residual)
            operands = (self.x[rows], self.x_scale[rows], self.weights[0], self.weight_scale)
            found.add(got[rows], reference.int8_gemm(*operands, epilogue))
        return found.relative_max


def operands(linear: Linear, m: int) -> Operands:
    def codes(*shape: int) -> Tensor:
        return torch.randint(-127, 128, shape, device="cuda", dtype=torch.int8)

    def half(*shape: int) -> Tensor:
        return torch.randn(shape, device="cuda", dtype=torch.float16)

    n, k = linear.n, linear.k
    return Operands(
        x=codes(m, k),
        x_scale=torch.rand(m, 1, device="cuda") * 0.02 + 0.01,
        weights=[codes(n, k) for _ in range(weight_copies(n * k, m))],
        weight_scale=torch.rand(n, 1, device="cuda") * 1e-3 + 1e-4,
        bias=half(n),
        gelu=linear.gelu,
        gamma=half(n) if linear.residual else None,
        residual=half(m, n) if linear.residual else None,
    )


def weight_copies(weight_bytes: int, m: int) -> int:
    """Enough to exceed the L2 cache; few for large M, where one call moves more than the cache anyway."""
    return 4 if m > 20000 else max(4, WEIGHT_BYTES // weight_bytes)


def time_in_graph(calls: Sequence[Callable[[], object]], replays: int = 7) -> float:
    """Median milliseconds per call of `calls` captured, one after another, in one CUDA graph."""
    calls[0]()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    times = []
    for _ in range(replays):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / len(calls))
    return statistics.median(times)


def candidates(arch: int, size: Size) -> Iterator[Tile]:
    """Tiles worth trying; those that do not fit the GPU are dropped when they fail to launch."""
    small = size.m < 3000
    if arch < 90:
        for m, n, k, warps, stages in (
            *((128, 128, 64, 4, 3), (128, 128, 64, 4, 4), (128, 128, 64, 8, 4), (128, 128, 128, 8, 2)),
            *((128, 128, 128, 8, 3), (256, 128, 64, 8, 3), (256, 128, 64, 8, 4), (128, 256, 64, 8, 3)),
            *((64, 128, 64, 4, 4), (64, 128, 128, 4, 3), (64, 64, 128, 4, 4)) * small,
        ):
            yield Tile(m, n, k, warps, stages)
        return
    if not small:
        for m, n, k, warps, stages, per_sm, parts in (
            *((128, 256, 128, 8, 3, 1, 1), (128, 256, 128, 8, 3, 1, 2), (128, 256, 64, 8, 4, 1, 2)),
            *((256, 128, 128, 8, 3, 1, 1), (256, 128, 128, 8, 3, 1, 2), (128, 256, 128, 8, 3, 0, 2)),
            *((128, 128, 128, 4, 3, 0, 1), (128, 128, 128, 8, 3, 2, 1), (128, 128, 64, 4, 4, 0, 1)),
            *((128, 128, 64, 4, 4, 0, 2), (128, 128, 64, 4, 3, 0, 2), (128, 128, 64, 4, 3, 3, 2)),
        ):
            yield Tile(m, n, k, warps, stages, tma=True, per_sm=per_sm, parts=parts)
        return
    for m, n, k, warps, stages in (
        *((64, 64, 128, 4, 6), (64, 64, 256, 4, 4), (64, 128, 128, 4, 4), (64, 128, 128, 4, 6)),
        *((64, 128, 256, 4, 3), (64, 256, 128, 4, 4), (128, 64, 128, 4, 5), (128, 128, 128, 8, 4)),
        *((128, 128, 128, 4, 3), (128, 256, 128, 8, 3)),
    ):
        yield Tile(m, n, k, warps, stages, tma=True)
        for split_k in (2, 3, 4) if size.k > 2048 else ():
            yield Tile(m, n, k, warps, stages, tma=True, split_k=split_k)
    for m, n, k, warps, stages in ((64, 64, 128, 4, 4), (64, 128, 128, 4, 4), (128, 128, 128, 8, 3)):
        yield Tile(m, n, k, warps, stages)


def measure(data: Operands, tile: Tile) -> tuple[float, str]:
    """Milliseconds of a tile, or NaN and the reason."""
    try:
        error = data.check(tile)
        if not error < 2e-3:
            return float("nan"), f"wrong: error {error:.1e}"
        return time_in_graph([partial(data.call, weight, tile) for weight in data.weights]), ""
    except (OutOfResources, CompilationError, PTXASError) as failure:
        return float("nan"), f"{type(failure).__name__}: {str(failure)[-200:]}"


def tune(linear: Linear, m: int, deadline: float) -> list[tuple[Tile, float, str]]:
    """(tile, milliseconds, reason if it failed) of the candidates tried before `deadline`, fastest first."""
    size = Size(m, linear.n, linear.k, linear.residual)
    data = operands(linear, m)
    with compiling():
        for tile in candidates(arch(), size):
            data.call(data.weights[0], tile)
    tried = [(tile, *measure(data, tile)) for tile in _until(deadline, candidates(arch(), size))]
    tried.sort(key=_speed)
    if tried:
        best = tried[0][0]
        groups = (replace(best, group_m=group) for group in GROUPS if group < 2 * (-(-m // best.block_m)))
        tried += [(tile, *measure(data, tile)) for tile in _until(deadline, groups)]
    return sorted(tried, key=_speed)


def work(frames: Sequence[int] = FRAMES) -> Iterator[tuple[int, Linear]]:
    """All sizes of the sweep, the most common number of frames first."""
    for count, linear in itertools.product(frames, LINEARS):
        yield count * TOKENS, linear


def _until(deadline: float, values: Iterator[Tile]) -> Iterator[Tile]:
    return itertools.takewhile(lambda _: time.monotonic() < deadline, values)


def _speed(row: tuple[Tile, float, str]) -> float:
    return row[1] if row[1] == row[1] else float("inf")


def arch() -> int:
    return architecture(torch.device("cuda", torch.cuda.current_device()))


def write_table(out: Path, seconds: float, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Measure all sizes for `seconds` in total and write the fastest tiles to `out`, which is updated after each size.

    say: called with a line for each size, as soon as it is known.

    Returns the sizes that were reached: "linear", "m" (rows), "tile", "ms" per call, and "tops" (1e12 operations a
    second). Raises OSError if `out` cannot be written, and ValueError if it is not a table of tiles.
    """
    tiles.write(out, {})  # fail before minutes of measuring
    torch.manual_seed(0)
    deadline = time.monotonic() + seconds
    best: dict[Size, Tile] = {}
    found = []
    for m, linear in work():
        rows = tune(linear, m, deadline)
        if not rows or rows[0][1] != rows[0][1]:
            say(f"{linear.name} M {m}: not reached in {seconds:.0f} s")
            continue
        tile, ms, _ = rows[0]
        best[Size(m, linear.n, linear.k, linear.residual)] = tile
        tops = 2e-9 * m * linear.n * linear.k / ms
        say(f"{linear.name:17s} M {m:6d}: {tops:6.0f} TOPS  {tile}")
        found.append({"linear": linear.name, "m": m, "tile": asdict(tile), "ms": ms, "tops": tops})
        tiles.write(out, {arch(): best})
    return found
