"""`vggt-int8 demo` needs nothing but the package, and its files agree with its table."""

import json
from pathlib import Path

import pytest
from PIL import Image

from vggt_int8 import available_recipes
from vggt_int8.cli import demo


@pytest.mark.parametrize("shipped", [False, True])
def test_demo(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shipped: bool) -> None:
    if not shipped:
        monkeypatch.setattr(demo, "MINI", tmp_path / "absent")
    elif not (demo.MINI / "model.safetensors").is_file():
        pytest.skip("no trained model ships with this version")
    text = cli("demo", "-o", tmp_path / "out")
    assert ("random weights" in text) is not shipped
    names = ["fp32", *available_recipes()]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    rows = {row["recipe"]: row for row in report["rows"]}
    assert list(rows) == names
    for name in names:
        assert any(line.startswith(name) and f"{rows[name]['megabytes']:.2f} MB" in line for line in text.splitlines())
        assert {p.name for p in (tmp_path / "out" / name).iterdir()} >= {"cameras.json", "depth", "points.ply"}
        assert (rows[name]["depth_error"] is not None) is shipped
    assert rows["int8_dynamic"]["megabytes"] < 0.3 * rows["fp32"]["megabytes"]
    for name in names[1:]:
        assert 0 < rows[name]["depth_difference"] < 0.1
    assert Image.open(tmp_path / "out" / "depth.png").size[0] > 300
    assert {p.name for p in (tmp_path / "out").iterdir()} == {*names, "depth.png", "report.json"}
