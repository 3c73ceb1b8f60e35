"""Selects a GEMM's tile from a table per GPU architecture, so that nothing is tuned at start-up.

`tiles.json` maps an architecture ("90" is compute capability 9.0) to measured entries `{"m", "n", "k", "residual",
"tile": {...}}`. A GEMM uses the entry nearest to its own size, among those of its kind: an epilogue that reads a
residual needs more shared memory. `vggt-int8 tune` measures a GPU and writes such a file; `VGGT_INT8_TILES` names a
file to use instead of the shipped one.
"""

import functools
import json
import math
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from vggt_int8.files import write_whole

SHIPPED = Path(__file__).with_name("tiles.json")
ENVIRONMENT = "VGGT_INT8_TILES"
_FP32_BLOCK = 128 * 128  # results; 64 KiB of the 227 that a Hopper program may have


@dataclass(frozen=True)
class Tile:
    """How one program multiplies: it computes block_m x block_n outputs, block_k of the reduction at a time.

    tma: operands are loaded through tensor descriptors (compute capability 9.0 or higher), otherwise through pointers.
    per_sm: programs per multiprocessor, each processing one tile after another; 0 for one program per tile.
    split_k: programs that share a tile's reduction and add their int32 sums in memory. Only with per_sm 0.
    group_m: rows of tiles that run concurrently, so that they share operands in the L2 cache.
    parts: 2 processes the epilogue's columns in two halves, which needs fewer registers. Only with tma.
    """

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    tma: bool = False
    per_sm: int = 0
    split_k: int = 1
    group_m: int = 8
    parts: int = 1

    def __str__(self) -> str:
        parts = [f"{self.block_m}x{self.block_n}x{self.block_k}", f"w{self.warps}", f"s{self.stages}"]
        parts += ["tma"] * self.tma + [f"p{self.per_sm}"] * (self.per_sm > 0)
        parts += [f"k/{self.split_k}"] * (self.split_k > 1) + [f"e/{self.parts}"] * (self.parts > 1)
        return " ".join(parts)


# For products whose results become codes, on Hopper: the best for VGGT-1B's fc1 at 1, 10, 32 frames on an H200 ("Static
# scales in kernels" in `benchmarks/NOTES.md`). Making codes takes longer than making floats, so two programs per
# multiprocessor help, one of which multiplies meanwhile; with four warps each, they have 255 registers a thread.
MANY_ROWS = 3000
_CODES_FEW_ROWS = Tile(64, 128, 128, 4, 4, tma=True, per_sm=2)
_CODES = Tile(128, 128, 128, 4, 3, tma=True, per_sm=2)
_CODES_ROTATED = Tile(128, 256, 128, 8, 3, tma=True, per_sm=1)
_ROTATED = Tile(128, 256, 64, 8, 3)


class Size(NamedTuple):
    """A GEMM [m, k] x [n, k], and whether its epilogue adds a residual."""

    m: int
    n: int
    k: int
    residual: bool


def gemm_tile(arch: int, size: Size, fp32: bool = False) -> Tile:
    """The tile for an INT8 GEMM on architecture `arch` (10 * major + minor), with results in fp32 or smaller.

    Descriptors need rows in multiples of 16 bytes; other sizes use the same blocks through pointers. With descriptors,
    results are stored through shared memory, which is too small for fp32 results of the largest blocks. Raises
    ValueError for an unusable table, naming its file, and for a GPU that is too old.
    """
    tile = _nearest(os.environ.get(ENVIRONMENT) or str(SHIPPED), arch, size)
    if fp32 and tile.tma and tile.block_m * tile.block_n > _FP32_BLOCK:
        tile = Tile(128, 128, 128, 8, 3, tma=True, per_sm=1, parts=2)
    if tile.tma and _needs_pointers(size):
        return Tile(min(tile.block_m, 128), min(tile.block_n, 128), 64, 4, 3)
    return tile


def codes_tile(arch: int, size: Size, rotation: int) -> Tile:
    """`gemm_tile` for results that become codes under static scales: a tile holds whole groups of `rotation` columns.

    Other GPUs than Hopper use the tiles for floats, where they are wide enough, without measurements.
    """
    if arch == 90 and not _needs_pointers(size):
        few = _CODES_FEW_ROWS if size.m < MANY_ROWS else _CODES
        return few if rotation <= few.block_n else _CODES_ROTATED
    tile = gemm_tile(arch, size)
    return _ROTATED if tile.block_n < rotation else replace(tile, parts=1)


def _needs_pointers(size: Size) -> bool:
    return bool(size.k % 16 or size.n % 16 or size.k == 0)


@functools.lru_cache(maxsize=4096)
def _nearest(path: str, arch: int, size: Size) -> Tile:
    entries = [entry for entry in _table(path, arch) if entry["residual"] == size.residual]
    if not entries:
        raise _unusable(path, f"for compute capability {arch / 10} none of its entries has residual {size.residual}")

    def distance(entry: dict[str, Any]) -> float:
        return sum(abs(math.log(getattr(size, key) / entry[key])) for key in ("m", "n", "k"))

    return Tile(**min(entries, key=distance)["tile"])


@functools.lru_cache(maxsize=16)
def _table(path: str, arch: int) -> list[dict[str, Any]]:
    """The entries of `arch`, or of the newest older architecture; one newer than all gets the pointer tiles of Ada,
    which fit everywhere.
    """
    tables = _read(Path(path))["int8_gemm"]
    if str(arch) in tables:
        return tables[str(arch)]
    older = [int(name) for name in tables if int(name) <= arch]
    if not older:
        raise ValueError(
            f"the INT8 kernels need a GPU of compute capability {min(map(int, tables)) / 10} or newer, "
            f'not {arch / 10}: use backend="reference" or "bitsandbytes"'
        )
    fallback = "89" if arch > 90 and "89" in tables else str(max(older))
    return tables[fallback]


def _read(path: Path) -> dict[str, Any]:
    """The content of a table's file. Raises ValueError, naming the file, unless every entry is a size with a tile."""
    try:
        table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for arch, entries in table["int8_gemm"].items():
            int(arch)
            for entry in entries:
                m, n, k, _ = Size(*(entry[key] for key in Size._fields))
                numbers = (m, n, k, *asdict(Tile(**entry["tile"])).values())
                if not all(isinstance(number, int) and number >= 0 for number in numbers) or 0 in (m, n, k):
                    raise ValueError(f"it has the entry {entry}")
        if not table["int8_gemm"]:
            raise ValueError("it has no entries")
    except KeyError as error:
        raise _unusable(path, f"{error} is missing") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise _unusable(path, str(error)) from error
    return table


def _unusable(path: str | Path, reason: str) -> ValueError:
    return ValueError(
        f"{path} is no table of tiles: {reason}. Name another file, or make one with "
        f"`vggt-int8 tune --out FILE`; without {ENVIRONMENT} the one that is shipped is used"
    )


def write(path: Path, entries: dict[int, dict[Size, Tile]]) -> None:
    """Write a table {architecture: {size: tile}}; other entries are kept from `path` or the shipped table.

    Raises OSError, or ValueError if the existing file is not a table.
    """
    table = _read(path if path.exists() else SHIPPED)
    for arch, rows in entries.items():
        kept = {Size(*(e[key] for key in Size._fields)): e["tile"] for e in table["int8_gemm"].get(str(arch), [])}
        merged = kept | {size: asdict(tile) for size, tile in rows.items()}
        table["int8_gemm"][str(arch)] = [size._asdict() | {"tile": merged[size]} for size in sorted(merged)]
    write_whole(path, _format(table))
    _table.cache_clear()
    _nearest.cache_clear()


def _format(table: dict[str, Any]) -> str:
    """JSON with one entry per line, so that a new tuning makes a readable diff."""
    arches = []
    for arch, rows in table["int8_gemm"].items():
        lines = ",\n".join("      " + json.dumps(row) for row in rows)
        arches.append(f'    "{arch}": [\n{lines}\n    ]')
    body = ",\n".join(arches)
    return f'{{\n  "int8_gemm": {{\n{body}\n  }}\n}}\n'
