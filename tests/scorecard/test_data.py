"""Scenes to score on: the same as those of the renderer and of the stored format, and told apart when they change."""

from pathlib import Path

import pytest
import torch

from vggt_int8.scenes import load_scene, render_scenes, scene_seeds
from vggt_int8.scenes.stored import store_rendered
from vggt_int8.scorecard import data as module
from vggt_int8.scorecard.data import RenderedScenes, StoredScenes, TrueScene, first_scenes

SIZE = (16, 24)


def store(folder: Path, index: int = 0) -> Path:
    store_rendered(folder, "free", index, 2, SIZE, supersample=1)
    return folder


@pytest.mark.parametrize("kept_bytes", [0, 1 << 30])
def test_rendered_scenes_are_those_of_the_renderer(monkeypatch: pytest.MonkeyPatch, kept_bytes: int) -> None:
    monkeypatch.setattr(module, "_KEPT_BYTES", kept_bytes)
    scenes = RenderedScenes(2, 3, SIZE, "free")
    wanted = render_scenes(scene_seeds("free", [1]), 3, SIZE)
    for _ in range(2):  # kept or rendered again
        found = list(scenes)
        assert [scene.name for scene in found] == ["free 0", "free 1"]
        assert torch.equal(found[1].images, wanted.images[0])
        assert torch.equal(found[1].depth, wanted.depth[0])
    assert len(first_scenes(scenes, 5)) == len(scenes) == 2


def test_kept_scenes_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = list(RenderedScenes(2, 3, SIZE, "free", folder=tmp_path))
    monkeypatch.setattr(module, "render_scenes", None)  # nothing is rendered now
    for found, scene in zip(RenderedScenes(2, 3, SIZE, "free", folder=tmp_path), wanted, strict=True):
        assert found.name == scene.name
        assert all(torch.equal(getattr(found, name), getattr(scene, name)) for name in module._KNOWN)
    with pytest.raises(TypeError):
        list(RenderedScenes(1, 2, SIZE, "free", folder=tmp_path))


def test_the_scale_by_hand() -> None:
    rendered = next(iter(RenderedScenes(1, 2, SIZE, "free")))
    assert rendered.scale() == pytest.approx(1, abs=1e-3), "the renderer divides by it"
    far = torch.eye(3, 4).repeat(3, 1, 1)
    far[1, 0, 3], far[2, 1, 3] = 2.0, 4.0
    assert TrueScene("cameras alone", torch.zeros(3, 3, 4, 4), far).scale() == 3
    assert TrueScene("nothing", torch.zeros(3, 3, 4, 4)).scale() is None
    assert TrueScene("still", torch.zeros(2, 3, 4, 4), torch.eye(3, 4).repeat(2, 1, 1)).scale() is None


def test_stored_scenes_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        store(tmp_path / f"s{number}", number)
    found = StoredScenes(tmp_path)
    assert [scene.name for scene in found] == ["s1", "s2", "s10"]
    assert torch.equal(next(iter(found)).images, load_scene(tmp_path / "s1").images)
    assert [scene.name for scene in StoredScenes(tmp_path, 2)] == ["s1", "s2"]
    assert [scene.name for scene in StoredScenes(tmp_path / "s2")] == ["s2"]


def test_identities_change_with_what_is_scored(tmp_path: Path) -> None:
    scene = store(tmp_path / "scene")
    before = StoredScenes(scene).identity()
    assert StoredScenes(scene).identity() == before
    store(tmp_path / "other", 1)
    (scene / "depth_0.png").write_bytes((tmp_path / "other" / "depth_0.png").read_bytes())
    assert StoredScenes(scene).identity() != before
    assert RenderedScenes(2, 3, SIZE).identity() != RenderedScenes(2, 4, SIZE).identity()


def test_folders_without_scenes_and_damaged_ones_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no stored scene: pass a folder"):
        StoredScenes(tmp_path)
    (store(tmp_path / "scene") / "scene.json").write_text("{")
    with pytest.raises(ValueError, match=r"scene.json is damaged"):
        StoredScenes(tmp_path)
