"""Which images are seen, in which order, and what is refused before any network runs."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vggt_int8 import load_images
from vggt_int8.calibration import CalibrationError, find_scenes
from vggt_int8.calibration.images import FRAMES, choose, choose_inputs, content_hash, read
from vggt_int8.model.config import VGGTConfig

SMALL = VGGTConfig(img_size=56, patch_size=14)


def hashes(calls: list[Tensor]) -> list[list[str]]:
    return [[content_hash(image) for image in call] for call in calls]


def calls_of(images: object, samples: int = 100, seed: int = 0) -> list[Tensor]:
    return [read(chosen, SMALL) for chosen in choose(find_scenes(images), samples, seed)]  # type: ignore[arg-type]


def many(number: int, seed: int = 0) -> Tensor:
    return torch.rand(number, 3, 2, 2, generator=torch.Generator().manual_seed(seed))


@pytest.mark.filterwarnings("ignore:calibrated with")
def test_neither_order_nor_names_decide(folders: list[Path], tmp_path: Path, scenes: Tensor) -> None:
    want = hashes(calls_of([*folders, scenes]))
    shuffled = scenes[[2, 0, 1]][:, [1, 0]]
    renamed = tmp_path / "other"
    renamed.mkdir()
    for number, path in enumerate(sorted(folders[0].iterdir(), reverse=True)):
        shutil.copy(path, renamed / f"{number}.png")
    assert hashes(calls_of([shuffled, folders[1], renamed])) == want
    assert hashes(calls_of([*folders, *scenes])) == want, "scenes one by one, or in one tensor"
    assert hashes(calls_of([*folders, scenes.double()])) == want
    assert sorted(map(len, want)) == [2, 2, 2, 2, 3]
    for call in want:  # no call mixes scenes
        assert len({h in hashes([scene])[0] for scene in scenes for h in call}) <= 2


@pytest.mark.filterwarnings("ignore:calibrated with")
def test_files_are_what_load_images_gives(folders: list[Path]) -> None:
    (call,) = calls_of(folders[0])
    loaded = load_images(folders[0], model=SMALL)
    assert sorted(hashes([call])[0]) == sorted(hashes([loaded])[0])
    files = sorted(folders[0].iterdir())
    assert hashes(calls_of([str(file) for file in files])) == hashes([call]), "single files are one scene"
    assert hashes(calls_of(str(folders[0] / "*.png"))) == hashes([call])


def test_the_seed_chooses_and_every_scene_has_its_turn() -> None:
    images = [many(25, seed=seed) for seed in range(3)]
    calls = calls_of(images, samples=37)
    assert [len(call) for call in calls] == [FRAMES, FRAMES, FRAMES, 7]
    of_scene = [{content_hash(image) for image in scene} for scene in images]
    owners = [[number for number, own in enumerate(of_scene) if set(call) <= own] for call in hashes(calls)]
    assert sorted(owner for (owner,) in owners[:3]) == [0, 1, 2]
    assert hashes(calls_of(images, samples=37)) == hashes(calls)
    other = hashes(calls_of(images, samples=37, seed=1))
    assert {h for call in other for h in call} != {h for call in hashes(calls) for h in call}
    assert len({h for call in hashes(calls) for h in call}) == 37


def test_fewer_images_than_wanted_are_told_of() -> None:
    with pytest.warns(UserWarning, match="calibrated with 3 images, all that there are, not with 32"):
        assert [len(call) for call in calls_of(many(3), samples=32)] == [3]


@pytest.mark.filterwarnings("ignore:calibrated with 4 images")
def test_an_image_that_comes_twice_is_seen_once() -> None:
    """In one scene or in two, such as a folder and a pattern that fits it, in whatever order."""
    images, others = many(4), many(3, seed=1)
    want = hashes(calls_of([images, others], samples=7))
    for given in (
        [torch.cat([images, images[1:3]]), others],
        [others, images, images[[3, 2]]],
        [images, others, others],
    ):
        with pytest.warns(
            UserWarning, match=r"of (9|10) images to calibrate with, [23] came before: each is seen once"
        ):
            found = hashes(calls_of(given, samples=7))
        assert sorted(h for call in found for h in call) == sorted(h for call in want for h in call)
    with pytest.warns(UserWarning, match="came before"):
        one, other = (hashes(calls_of(given, samples=7)) for given in ([images, images[2:]], [images[2:], images]))
    assert one == other
    with pytest.warns(UserWarning, match="calibrated with 1 image, all that there are, not with 2"):
        calls_of(images[:1], samples=2)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "no image was given to calibrate with"),
        (torch.zeros(0, 3, 4, 4), r"calibration images \[0, 3, 4, 4\] are none"),
        (torch.zeros(3, 4, 4), r"floats \[S, 3, H, W\] or .* got torch.float32 \[3, 4, 4\]"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), r"must be floats .* got torch.uint8"),
        (many(2) * 255, r"images must lie in \[0, 1\], but hold values from .*: divide them by 255"),
    ],
)
def test_images_that_are_none(images: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_scenes(images)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_images_that_are_not_finite_are_named(scenes: Tensor, value: float) -> None:
    bad = scenes.clone()
    bad[2, 1, 0, 3, 3] = value
    with pytest.raises(CalibrationError, match="image 1 of scene 2 of the calibration images holds NaN or inf"):
        find_scenes(bad)


def test_things_that_are_no_images(tmp_path: Path, folders: list[Path]) -> None:
    with pytest.raises(TypeError, match=r"paths of files or folders, or tensors .* got a int"):
        find_scenes([folders[0], 3])  # type: ignore[list-item]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find_scenes([folders[0], tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty"):
        find_scenes([folders[0], tmp_path / "empty"])
    (folders[1] / "1.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"1\.png"):
        find_scenes(folders)


def test_inputs_of_any_module() -> None:
    tensors = [many(1, seed=seed) for seed in range(5)]
    want = choose_inputs(tensors, 3, 0)
    assert len(want) == 3
    assert all(torch.equal(a, b) for a, b in zip(want, choose_inputs(tensors[::-1], 3, 0), strict=True))
    with pytest.raises(TypeError, match="calibrated with tensors, one for each call of it; got a str"):
        choose_inputs(["a.png"], 3, 0)
    with pytest.raises(CalibrationError, match=r"an input \[1, 3, 2, 2\] to calibrate with holds NaN"):
        choose_inputs([tensors[0] * math.nan], 3, 0)
