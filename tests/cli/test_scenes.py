"""`vggt-int8 scenes`: what it writes is what `load_scene` reads."""

import json
from pathlib import Path

import pytest

from vggt_int8.scenes import StoredScene, available_scenes, load_scene


@pytest.mark.slow
def test_the_shipped_scenes_are_what_the_command_writes(cli, tmp_path: Path) -> None:
    said = cli("scenes", "bundle", "--to", tmp_path / "all")
    for name in available_scenes():
        rewritten, shipped = load_scene(tmp_path / "all" / name), load_scene(name)
        assert isinstance(rewritten, StoredScene)
        assert ((rewritten.depth - shipped.depth).abs() <= 1e-4).float().mean() > 0.999
        assert rewritten.origin == shipped.origin
        assert f"wrote {tmp_path / 'all' / name}" in said


def test_a_scene_is_written_as_load_scene_reads_it(cli, tmp_path: Path) -> None:
    command = ("scenes", "render", "--split", "held_out", "--index", 2, "--views", 3, "--size", 16, 24)
    found = json.loads(cli(*command, "--to", tmp_path / "one", "--json"))
    assert found["scenes"] == [str(tmp_path / "one")]
    assert load_scene(tmp_path / "one").images.shape == (3, 3, 16, 24)


def test_a_place_that_is_taken_is_named_before_anything_is_rendered(
    cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vggt_int8.scenes.stored.render_scenes", None)
    (tmp_path / "file").write_text("mine")
    assert "is no stored scene: choose another name" in cli("scenes", "render", "--to", tmp_path / "file", code=2)
    assert "file is a file" in cli("scenes", "render", "--to", tmp_path / "file" / "one", code=2)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    assert "is no stored scene: choose another name" in cli("scenes", "render", "--to", tmp_path / "full", code=2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--split", "heldout"), ["there is no split 'heldout'", "did you mean 'held_out'"]),
        (("--views", "0"), ["--views", "0 is out of range"]),
        (("--size", "16", "0"), ["--size", "0 is out of range, it must be at least 1"]),
        (("--index", "-1"), ["--index", "-1 is out of range"]),
    ],
)
def test_mistakes_are_named(cli, tmp_path: Path, arguments: tuple[str, ...], words: list[str]) -> None:
    error = cli("scenes", "render", "--to", tmp_path / "one", *arguments, code=2)
    assert all(word in error for word in words)
    assert list(tmp_path.iterdir()) == []
