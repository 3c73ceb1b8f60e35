"""`vggt-int8 view`: what is said before a page is served, and where it is."""

import json
import sys
from pathlib import Path

import pytest

from tests.viewer.conftest import make_wall
from vggt_int8.export import save_scene
from vggt_int8.viewer import Viewer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    save_scene(tmp_path / "out" / "scene", make_wall())
    return tmp_path / "out"


def test_what_cannot_be_shown_is_said(cli, folder: Path, tmp_path: Path) -> None:
    assert f"{tmp_path / 'gone'} holds no saved scene" in cli("view", tmp_path / "gone", code=2)
    assert "source 'world_points' needs the point head" in cli("view", folder, "--points", "world_points", code=2)
    assert "did you mean 'difference'?" in cli("view", folder, "--color", "differences", code=2)
    alone = cli("view", folder, "--color", "difference", code=2)
    assert "color 'difference' needs several reconstructions" in alone
    assert "choose image or confidence" in alone


def test_without_viser_the_way_to_it_is_told(cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "viser", None)
    assert "pip install 'vggt-int8[viewer]'" in cli("view", folder, code=2)


def test_the_address_is_the_result(cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("viser", reason="the viewer needs the extra viewer (constraints-app.txt)")
    monkeypatch.setattr(Viewer, "wait", lambda self: self.page.work.wait(timeout=30))
    document = json.loads(cli("view", folder, "--port", "0", "--json"))
    assert document["url"].startswith("http://127.0.0.1:")
    assert document["reconstructions"] == [{"folder": str(folder), "label": "out"}]
