"""The tile table: lookup, sizes it cannot take as they are, and what the tuner writes."""

import json
from pathlib import Path

import pytest

from vggt_int8.kernels import tiles
from vggt_int8.kernels.tiles import Size, Tile, gemm_tile

SHARED_MEMORY = {80: 163, 86: 99, 89: 99, 90: 227}  # KiB that one block may have


@pytest.mark.parametrize("arch", SHARED_MEMORY)
def test_shipped_operands_fit_shared_memory(arch: int) -> None:
    entries = json.loads(tiles.SHIPPED.read_text())["int8_gemm"][str(arch)]
    assert {(e["n"], e["k"]) for e in entries} >= {(3072, 1024), (1024, 1024), (4096, 1024), (1024, 4096)}
    for entry in entries:
        tile = Tile(**entry["tile"])
        assert (tile.block_m + tile.block_n) * tile.block_k * tile.stages <= SHARED_MEMORY[arch] * 1024
        assert tile.tma is (arch >= 90) or not tile.tma
        assert tile.per_sm == 0 or tile.split_k == 1


def test_nearest_size_of_the_same_kind_wins() -> None:
    assert gemm_tile(90, Size(1, 3072, 1024, False)) != gemm_tile(90, Size(10410, 3072, 1024, False))
    assert gemm_tile(90, Size(10000, 3008, 1024, False)) == gemm_tile(90, Size(10410, 3072, 1024, False))
    assert gemm_tile(90, Size(5, 8192, 2048, True)) == gemm_tile(90, Size(1, 1024, 4096, True))


@pytest.mark.parametrize(("n", "k"), [(3072, 37), (9, 1024)])
def test_sizes_that_descriptors_cannot_take_go_through_pointers(n: int, k: int) -> None:
    assert not gemm_tile(90, Size(1041, n, k, False)).tma


def test_other_architectures() -> None:
    size = Size(1041, 3072, 1024, False)
    assert gemm_tile(87, size) == gemm_tile(86, size)
    assert gemm_tile(120, size) == gemm_tile(89, size)
    with pytest.raises(ValueError, match=r"compute capability 8.0 or newer, not 7.5: use backend="):
        gemm_tile(75, size)


def test_written_table_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size, tile = Size(100, 3072, 1024, False), Tile(64, 64, 128, 4, 5, split_k=2)
    path = tmp_path / "tiles.json"
    tiles.write(path, {90: {size: tile, size._replace(residual=True): tile}})
    monkeypatch.setenv(tiles.ENVIRONMENT, str(path))
    tiles._nearest.cache_clear()
    assert gemm_tile(90, size) == tile
    assert gemm_tile(80, size) == Tile(128, 128, 64, 4, 4)
    monkeypatch.undo()
    tiles._nearest.cache_clear()
    assert str(tile) == "64x64x128 w4 s5 k/2"
