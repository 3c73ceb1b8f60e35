"""A scene on the disk is the scene that was saved, whether at once or in pieces, and damage is named."""

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vggt_int8.export import Scene, SceneWriter, Tracks, load_scene, save_scene
from vggt_int8.export.frames import frame_pool, in_order


def assert_same(found: Scene, expected: Scene) -> None:
    assert (found.names, found.files, found.transforms) == (expected.names, expected.files, expected.transforms)
    for field in fields(Scene):
        value = getattr(expected, field.name)
        if isinstance(value, Tensor):
            assert torch.equal(getattr(found, field.name), value), field.name
        elif value is None:
            assert getattr(found, field.name) is None
    for index in range(len(expected)):
        assert torch.equal(found.content(index), expected.content(index))


@pytest.fixture
def rich(scene: Scene) -> Scene:
    """With tracks, transparent pixels, a file, and a name that is not UTF-8."""
    opaque = torch.ones(scene.size, dtype=torch.bool)
    opaque[:5] = False
    return replace(
        scene,
        names=["caf\udce9.jpg", "b.jpg"],
        files=[Path("/photos/b.jpg"), None],
        transforms=[replace(scene.transforms[0], opaque=opaque), scene.transforms[1]],
        tracks=Tracks(torch.rand(2, 5, 2), torch.rand(2, 5), torch.rand(2, 5)),
    )


def test_a_scene_is_read_back_as_it_was(tmp_path: Path, rich: Scene) -> None:
    save_scene(tmp_path / "scene", rich)
    for folder in (tmp_path, tmp_path / "scene"):
        found = load_scene(folder)
        assert_same(found, rich)
        assert found.tracks is not None
        assert rich.tracks is not None
        assert torch.equal(found.tracks.points, rich.tracks.points)
    assert np.array_equal(np.load(tmp_path / "scene/depth.npy"), rich.depth)  # for whoever has only NumPy


def test_a_scene_without_heads(tmp_path: Path, scene: Scene) -> None:
    bare = Scene(scene.names, scene.transforms, scene.colors, None, None, None, None)
    save_scene(tmp_path / "scene", bare)
    assert_same(load_scene(tmp_path), bare)


def test_pieces_make_the_whole_and_cameras_may_come_last(tmp_path: Path, rich: Scene) -> None:
    whole = replace(rich, tracks=None)

    def piece(index: int) -> Scene:
        part = slice(index, index + 1)
        changes = {
            field.name: getattr(whole, field.name)[part]
            for field in fields(Scene)
            if getattr(whole, field.name) is not None
        }
        return replace(whole, **changes)

    for order in ([0, 1], [1, 0]):  # the transparent image first, and last
        with SceneWriter(tmp_path / f"{order[0]}") as writer:
            for index in order:
                writer.add(piece(index))
            moved = whole.extrinsic[order] + 1 if whole.extrinsic is not None else None
            found = writer.finish(extrinsic=moved)
        assert found.extrinsic is not None
        assert torch.equal(found.extrinsic, moved)
        assert torch.equal(found.depth, whole.depth[order])
        assert torch.equal(found.content(order.index(0)), whole.content(0))
        assert torch.equal(found.content(order.index(1)), whole.content(1))


def test_pieces_that_do_not_fit_are_refused_and_leave_no_scene(tmp_path: Path, scene: Scene) -> None:
    def save(*pieces: Scene) -> None:
        with SceneWriter(tmp_path / "scene") as writer:
            for piece in pieces:
                writer.add(piece)

    with pytest.raises(ValueError, match="cannot follow one with"):
        save(scene, replace(scene, depth=None))
    with pytest.raises(FileNotFoundError, match="holds no saved scene"):
        load_scene(tmp_path)
    with pytest.raises(ValueError, match="no images were added"), SceneWriter(tmp_path / "none"):
        pass


def test_damage_is_named(tmp_path: Path, scene: Scene) -> None:
    save_scene(tmp_path / "scene", scene)
    depth, index = tmp_path / "scene/depth.npy", tmp_path / "scene/scene.json"
    whole, document = depth.read_bytes(), index.read_text()
    depth.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"depth\.npy is damaged"):
        load_scene(tmp_path)
    np.save(depth, np.zeros((2, 28, 43), np.float32))
    with pytest.raises(ValueError, match=r"depth\.npy holds float32 of shape \(2, 28, 43\)"):
        load_scene(tmp_path)
    np.save(depth, np.float32(0))
    with pytest.raises(ValueError, match=r"depth\.npy holds float32 of shape \(\)"):
        load_scene(tmp_path)
    np.save(depth, np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"depth\.npy is damaged"):
        load_scene(tmp_path)
    depth.unlink()
    with pytest.raises(FileNotFoundError, match=r"depth\.npy"):
        load_scene(tmp_path)
    depth.write_bytes(whole)
    for broken, word in (
        (document[:-9], "not a whole JSON"),
        (json.dumps({**json.loads(document), "format_version": 2}), "format version 2"),
        (json.dumps({**json.loads(document), "images": [{}]}), "is damaged"),
        (json.dumps({**json.loads(document), "arrays": ["../depth"]}), r"lists \['../depth'\]"),
    ):
        index.write_text(broken)
        with pytest.raises(ValueError, match=word):
            load_scene(tmp_path)


def resident(file: Path) -> int:
    """Bytes of a file's mappings that this process holds in memory."""
    total, here = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line.endswith("kB"):
            total += int(line.split()[1]) * 1024 if here and line.startswith("Rss:") else 0
        elif "-" in line.split(" ")[0]:
            here = line.endswith(str(file))
    return total


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system does not tell which pages are in memory")
def test_memory_of_maps_on_the_disk_is_given_back(tmp_path: Path, scene: Scene) -> None:
    save_scene(tmp_path / "scene", scene)
    found = load_scene(tmp_path)
    assert found.depth is not None
    file, before = (tmp_path / "scene/depth.npy").resolve(), found.depth.clone()
    assert resident(file) >= before.nbytes
    found.release_pages()
    assert resident(file) == 0
    assert torch.equal(found.depth, before)  # read once more


def test_a_pool_gives_memory_back_as_it_goes() -> None:
    done: list[int] = []
    released: list[int] = []
    with frame_pool(lambda: released.append(len(done))) as pool:
        for _ in in_order(pool, done.append, range(200)):
            pass
    assert len(done) == 200
    assert len(released) == 3  # after every 64
