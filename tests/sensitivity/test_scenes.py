"""What is a scene, and what is refused as one."""

import shutil
from pathlib import Path

import pytest
import torch

from vggt_int8 import VGGTConfig
from vggt_int8.scenes.stored import BUNDLED_FOLDER
from vggt_int8.sensitivity.scenes import read_scene, render
from vggt_int8.sensitivity.sources import Source, find_scenes

IMAGES = Path(__file__).parent.parent / "data" / "parity" / "images"


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """kitchen/ and garden/ of two photographs each, stored/ of two scenes as files."""
    for name in ("kitchen", "garden"):
        (tmp_path / name).mkdir()
        for image in ("landscape.png", "landscape_b.png"):
            shutil.copy(IMAGES / image, tmp_path / name)
    for name in ("room", "table"):
        shutil.copytree(BUNDLED_FOLDER / name, tmp_path / "stored" / name)
    return tmp_path


def test_folders_are_scenes_and_files_are_one(folders: Path) -> None:
    files = [str(IMAGES / "landscape.png"), str(IMAGES / "landscape_b.png")]
    found = find_scenes(
        [str(folders / "kitchen"), files[0], str(folders / "stored"), files[1], str(folders / "garden")]
    )
    assert [source.name for source in found] == [
        str(folders / "kitchen"),
        str(folders / "stored" / "room"),
        str(folders / "stored" / "table"),
        str(folders / "garden"),
        f"{files[0]} and others",
    ]
    assert found[-1].files == (IMAGES / "landscape.png", IMAGES / "landscape_b.png")
    assert [source.name for source in find_scenes([str(folders / "stored" / "room")])] == [
        str(folders / "stored" / "room")
    ]


def test_what_is_no_scene_is_said(folders: Path) -> None:
    (folders / "garden" / "landscape.png").unlink()
    with pytest.raises(ValueError, match=r"garden has one image: poses are compared between pairs of views"):
        find_scenes([str(folders / "garden")])
    with pytest.raises(ValueError, match="has one image"):
        find_scenes([str(IMAGES / "landscape.png")])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find_scenes([str(folders / "nowhere")])
    (folders / "empty").mkdir()
    with pytest.raises(ValueError, match="empty"):
        find_scenes([str(folders / "empty")])
    with pytest.raises(ValueError, match="kitchen is given twice"):
        find_scenes([str(folders / "kitchen")] * 2)


def test_stored_scenes_keep_their_size(folders: Path) -> None:
    source = Source("room", stored=folders / "stored" / "room")
    scene = read_scene(source, VGGTConfig(img_size=56, patch_size=8), "crop")
    assert scene.size == (112, 112)
    with pytest.raises(ValueError, match="room is 112 112 pixels: height and width must be multiples of the model's"):
        read_scene(source, VGGTConfig(img_size=65, patch_size=13), "crop")


def test_a_digest_tells_pixels_and_sizes_apart(folders: Path) -> None:
    config = VGGTConfig(img_size=56, patch_size=14)
    kitchen, garden = (
        read_scene(source, config, "crop") for source in find_scenes([str(folders / n) for n in ("kitchen", "garden")])
    )
    assert kitchen.digest() == garden.digest()
    garden.images[1, 0, 3, 5] += 0.001
    assert kitchen.digest() != garden.digest()
    kitchen_b = type(kitchen)("b", kitchen.images.flip(0))
    assert kitchen.digest() != kitchen_b.digest()


def test_rendered_scenes_are_the_same_each_time() -> None:
    first, second = (render(2, 2, (28, 28), "calibration", 14, "cpu") for _ in range(2))
    assert [scene.name for scene in first] == ["calibration 0", "calibration 1"]
    assert first[0].digest() == second[0].digest() != first[1].digest()
    assert first[0].images.shape == torch.Size([2, 3, 28, 28])
    with pytest.raises(ValueError, match="--size is 30 28 pixels"):
        render(1, 2, (30, 28), "calibration", 14, "cpu")
