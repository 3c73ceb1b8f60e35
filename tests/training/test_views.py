"""Views of folders: the same for a step whenever it runs, shared out over processes; what is no scene is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vggt_int8.model import VGGTConfig
from vggt_int8.training.qat_config import QatConfig
from vggt_int8.training.sections import DataConfig, ValidationConfig
from vggt_int8.training.views import Album, find_scenes, scene_folders

CONFIG = QatConfig(
    data=DataConfig(views=(2, 3), frames_per_step=6), validation=ValidationConfig(scenes=3, frames_per_batch=4)
)
MODEL = VGGTConfig(img_size=16, patch_size=8)


def scene(frames: int, height: int = 8, first: int = 0) -> Tensor:
    """Frame i is of the grey `first + i`."""
    return (first + torch.arange(frames)).to(torch.uint8).view(-1, 1, 1, 1).expand(frames, 3, height, 16).clone()


def save(folder: Path, scene: Tensor) -> Path:
    folder.mkdir(parents=True)
    for index, image in enumerate(scene):
        Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy())).save(folder / f"{index}.png")
    return folder


def test_a_steps_views_are_a_function_of_the_step() -> None:
    album = Album([scene(5), scene(4, first=50), scene(3, height=16, first=100)])
    steps = list(album.items(CONFIG, 0, 30, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(steps[10:], album.items(CONFIG, 10, 30, 0, 1), strict=True))
    assert {tuple(step.shape) for step in steps} == {(6 // v, v, 3, h, 16) for v in (2, 3) for h in (8, 16)}
    other = list(album.items(QatConfig(data=CONFIG.data, seed=1), 0, 30, 0, 1))
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(steps, other, strict=True))
    for step in steps:
        for views in step:
            greys = views[:, 0, 0, 0].tolist()
            assert len(set(greys)) == len(greys), "no view comes twice"
            assert max(greys) - min(greys) < 5, "and all are of one scene"


def test_processes_share_a_step() -> None:
    album = Album([scene(200)])
    for first, second in zip(album.items(CONFIG, 0, 9, 0, 2), album.items(CONFIG, 0, 9, 1, 2), strict=True):
        assert first.shape == second.shape
        assert not torch.equal(first, second)


def test_more_views_than_there_are_images_are_not_asked_for() -> None:
    assert Album([scene(2), scene(5)]).views_possible((2, 4, 8)) == [2, 4]
    assert Album([scene(3)]).views_possible((4, 8)) == [3]
    config = QatConfig(data=DataConfig(views=(2, 4), frames_per_step=8), validation=ValidationConfig(views=(8,)))
    assert Album([scene(8)]).remarks(config) == []
    assert Album([scene(3)]).remarks(config) == [
        "no scene has 4 images: steps with 2 views",
        "no scene has 8 images: validation with 3 views",
    ]


def test_what_validation_sees_is_always_the_same() -> None:
    device = torch.device("cpu")
    album = Album([scene(5), scene(5, first=50)])
    batches = list(album.held_out(CONFIG, 2, device))
    assert [len(batch.images) for batch in batches] == [2, 1]
    again = Album([scene(5), scene(5, first=50)]).held_out(CONFIG, 2, device)
    assert all(torch.equal(a.images, b.images) for a, b in zip(batches, again, strict=True))
    held = Album([scene(2, first=200)])
    images = torch.cat([b.images for b in Album([scene(5)], held).held_out(CONFIG, 2, device)])
    assert images.min() >= 200 / 255 - 1e-6


def test_folders_are_scenes(tmp_path: Path) -> None:
    save(tmp_path / "many" / "a", scene(2))
    save(tmp_path / "many" / "b", scene(3, first=40))
    save(tmp_path / "one", scene(4, first=90))
    seen = []
    album = Album.read(find_scenes([tmp_path / "many", str(tmp_path / "one")]), MODEL, lambda *done: seen.append(done))
    assert album.facts() | {"sha256": ""} == {"kind": "images", "scenes": 3, "images": 9, "sha256": ""}
    assert [scenes[-1][0, 0, 0, 0].item() for scenes in album.by_size.values()] == [90]
    assert seen == [(2, 9), (5, 9), (9, 9)]
    (item,) = album.items(CONFIG, 0, 1, 0, 1)
    views = album.prepare(item, CONFIG, torch.device("cpu"))
    assert torch.equal((views.images * 255).round().to(torch.uint8), item)
    assert album.sha256 != Album.read(find_scenes([tmp_path / "many"]), MODEL).sha256


def test_what_is_no_scene_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "single", scene(1))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="a scene needs two views or more, and the folders have 1: put views together"):
        find_scenes([tmp_path / "single"])
    with pytest.raises(FileNotFoundError, match=r"no such folder of images: .*nowhere"):
        find_scenes([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match=r"0\.png is a file: a scene is a folder"):
        find_scenes([tmp_path / "single" / "0.png"])
    with pytest.raises(ValueError, match="empty"):
        find_scenes([tmp_path / "empty"])
    assert scene_folders(tmp_path) == [tmp_path / "empty", tmp_path / "single"]
