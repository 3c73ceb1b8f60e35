"""The tile table: lookup, sizes it cannot take as they are, and what the tuner writes."""

import json
from pathlib import Path

import pytest

from vggt_int8.kernels.cuda import tiles
from vggt_int8.kernels.cuda.tiles import Size, Tile, codes_tile, gemm_tile

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


@pytest.mark.parametrize("arch", SHARED_MEMORY)
@pytest.mark.parametrize("m", [1, 1041, 104100])
@pytest.mark.parametrize("n", [4096, 4097])
@pytest.mark.parametrize("rotation", [0, 2, 128, 256])
def test_tiles_of_codes_hold_whole_groups(arch: int, m: int, n: int, rotation: int) -> None:
    tile = codes_tile(arch, Size(m, n, 1024, False), rotation)
    assert tile.block_n % max(1, rotation) == 0
    assert tile.parts == 1
    assert tile.tma is (arch == 90 and n % 16 == 0)
    assert (tile.block_m + tile.block_n) * tile.block_k * tile.stages * max(1, tile.per_sm) <= SHARED_MEMORY[
        arch
    ] * 1024


def test_other_architectures() -> None:
    size = Size(1041, 3072, 1024, False)
    assert gemm_tile(87, size) == gemm_tile(86, size)
    assert gemm_tile(120, size) == gemm_tile(89, size)
    with pytest.raises(ValueError, match=r"compute capability 8.0 or newer, not 7.5: use backend="):
        gemm_tile(75, size)


def test_written_table_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size, tile = Size(100, 3072, 1024, False), Tile(64, 64, 128, 4, 5, split_k=2)
    path = tmp_path / "results" / "tiles.json"
    tiles.write(path, {90: {size: tile, size._replace(residual=True): tile}})
    shipped = gemm_tile(90, size)
    monkeypatch.setenv(tiles.ENVIRONMENT, str(path))
    assert gemm_tile(90, size) == tile
    assert gemm_tile(80, size) == Tile(128, 128, 64, 4, 4)
    monkeypatch.setenv(tiles.ENVIRONMENT, "")
    assert gemm_tile(90, size) == shipped != tile
    assert str(tile) == "64x64x128 w4 s5 k/2"


def table(**changes: object) -> str:
    """The text of a table with one entry, for 8.0, without residual."""
    tile = {"block_m": 64, "block_n": 64, "block_k": 64, "warps": 4, "stages": 3}
    return json.dumps({"int8_gemm": {"80": [{"m": 1, "n": 8, "k": 8, "residual": False, "tile": tile} | changes]}})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "No such file"),
        ("", "Expecting value"),
        ("[]", "list indices"),
        ("{}", "'int8_gemm' is missing"),
        ('{"int8_gemm": {}}', "it has no entries"),
        ('{"int8_gemm": {"80": [{"m": 1}]}}', "'n' is missing"),
        (table(m=0), "it has the entry {'m': 0"),
        (table(tile={"blocks": 3}), "unexpected keyword argument 'blocks'"),
        (table(residual=True), "for compute capability 8.0 none of its entries has residual False"),
    ],
)
def test_a_file_that_is_no_table_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, reason: str
) -> None:
    path = tmp_path / "tiles.json"
    if text is not None:
        path.write_text(text)
    monkeypatch.setenv(tiles.ENVIRONMENT, str(path))
    with pytest.raises(ValueError, match=rf"tiles\.json is no table of tiles: .*{reason}.* without VGGT_INT8_TILES"):
        gemm_tile(80, Size(1, 8, 8, False))
