"""`vggt-int8 tune`: what stands against a measurement of tiles is said before it begins."""

import json
from pathlib import Path

import pytest
import torch

from vggt_int8.kernels.cuda.tiles import Tile


def test_tuning_needs_a_gpu(cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "sees no CUDA device here" in cli("tune", "--out", tmp_path / "tiles.json", code=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", [".", "file/tiles.json", "file"])
def test_tuning_looks_at_its_output_first(cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, out: str) -> None:
    pytest.importorskip("triton")
    from vggt_int8.kernels.cuda import tune

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tune, "tune", None)
    (tmp_path / "file").touch()
    assert str(tmp_path / out) in cli("tune", "--out", tmp_path / out, code=2)


def test_the_table_holds_what_was_reached(cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With times that are made up, since the real ones take a GPU and minutes."""
    pytest.importorskip("triton")
    from vggt_int8.kernels.cuda import tune

    fast, slow = Tile(64, 128, 128, 4, 4), Tile(128, 128, 64, 4, 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tune, "arch", lambda: 90)
    monkeypatch.setattr(tune, "work", lambda: iter([(1041, tune.LINEARS[0]), (10410, tune.LINEARS[0])]))
    timed = {1041: [(fast, 0.5, ""), (slow, 0.6, "")], 10410: [(slow, float("nan"), "wrong: error 1")]}
    monkeypatch.setattr(tune, "tune", lambda linear, m, deadline: timed[m])
    found = json.loads(cli("tune", "-o", tmp_path / "tiles.json", "--json"))
    (row,) = found["rows"]
    assert (row["linear"], row["m"], row["ms"], row["tile"]["block_n"]) == ("qkv", 1041, 0.5, 128)
    assert row["tops"] == pytest.approx(2e-9 * 1041 * 3072 * 1024 / 0.5)
    entries = json.loads((tmp_path / "tiles.json").read_text())["int8_gemm"]["90"]
    (entry,) = (entry for entry in entries if (entry["m"], entry["n"], entry["k"]) == (1041, 3072, 1024))
    assert entry["tile"] == row["tile"]
