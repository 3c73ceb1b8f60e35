"""What the page does, without the page: uploads to images, recipes side by side, and forgetting."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.video.clips import write_clip
from vggt_int8 import VGGTOmegaConfig, VGGTOmegaInt8
from vggt_int8.app import compared
from vggt_int8.app.compared import camera_table, compare_recipes, cost_table, difference_table
from vggt_int8.app.expiring import ExpiringFolder
from vggt_int8.app.inputs import image_files
from vggt_int8.app.models import FLOAT, KEPT, Models
from vggt_int8.recipe import available_recipes

IMAGES = Path(__file__).parent.parent / "data" / "parity" / "images"


# ---- uploads ----


def uploaded(tmp_path: Path, *names: str) -> list[Path]:
    """Each in a folder of its own, whose name says nothing, as a browser's files arrive."""
    found = []
    for number, name in enumerate(names):
        folder = tmp_path / f"{97 - number:x}"
        folder.mkdir()
        found.append(folder / name)
        Image.fromarray(np.full((28, 28, 3), 90, np.uint8)).save(found[-1])
    return found


def test_images_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    files = uploaded(tmp_path, "view 10.png", "view 2.png", "view 1.jpg", "view 2.png")
    found = image_files(files, tmp_path / "images", 8)
    assert [path.name for path in found] == ["view 1.jpg", "view 2.png", "2_view 2.png", "view 10.png"]
    assert {path.parent for path in found} == {tmp_path / "images"}  # so that exports have names without folders


def test_frames_of_a_video_are_spread_over_its_length(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", [number / 10 for number in range(40)])
    found = image_files([clip], tmp_path / "images", 4)
    assert len(found) == 4
    seconds = [float(path.stem.partition("_")[2].rstrip("s")) for path in found]
    assert np.all(np.diff(seconds) > 0.2)
    assert seconds[-1] > 2.9


def test_what_cannot_be_used_is_said(tmp_path: Path) -> None:
    files = uploaded(tmp_path, "a.png", "b.png")
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"no video")
    (tmp_path / "c.png").write_bytes(b"no image")
    for wrong, words in (
        ([], "no images yet"),
        ([*files, clip], "1 of 3 files are videos"),
        (files, "2 images are more than the 1"),
        ([tmp_path / "c.png"], "c.png is not an image"),
        ([clip], "clip.mp4"),
    ):
        with pytest.raises(ValueError, match=words):
            image_files(wrong, tmp_path / "images", 1)


# ---- recipes ----


def test_recipes_that_need_no_images_can_be_chosen(bare_checkpoint: Path, bare_int8: Path) -> None:
    choices = Models(str(bare_checkpoint)).choices
    assert choices[0] == FLOAT
    assert {"fp16", "int8_dynamic", "int8_rotated"} <= set(choices) < {FLOAT, *available_recipes()}
    assert "int8_static" not in choices
    quantized = Models(str(bare_int8))
    assert quantized.choices == ["int8_dynamic"]
    with pytest.raises(ValueError, match="recipe is 'fp16'; choose one of int8_dynamic"):
        quantized.get("fp16")


def test_two_recipes_side_by_side(bare_checkpoint: Path, tmp_path: Path) -> None:
    models = Models(str(bare_checkpoint))
    images = [IMAGES / "landscape.png", IMAGES / "landscape_b.png"]
    steps: list[float] = []
    found = compare_recipes(
        models, ["fp32", "int8_dynamic"], images, tmp_path, progress=lambda part, _: steps.append(part)
    )
    assert [outcome.recipe for outcome in found.outcomes] == ["fp32", "int8_dynamic"]
    assert steps == sorted(steps)
    plain, quantized = found.outcomes
    assert quantized.weights < plain.weights
    assert "int8" not in plain.runs_on
    assert found.differences["rotation_degrees"]["max"] > 0  # the quantization was active
    for outcome in found.outcomes:
        cameras = camera_table(outcome.scene)
        assert [row[0] for row in cameras] == ["landscape.png", "landscape_b.png"]
        assert cameras[0][2] == "0.0°"
    assert [row[0] for row in cost_table(found)] == ["fp32", "int8_dynamic"]
    assert all(len(row) == 3 for row in difference_table(found))
    alone = compare_recipes(models, ["int8_dynamic"], images, tmp_path / "alone")
    assert alone.differences == {}


def test_gpu_memory_of_one_side_is_without_the_other_sides_weights(
    bare_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_peak(network: Any, pixels: Any) -> tuple[Any, float, bool, int]:
        with torch.inference_mode():
            return network(pixels), 1.0, True, 10**9

    monkeypatch.setattr(compared, "timed", with_peak)
    plain, quantized = compare_recipes(
        Models(str(bare_checkpoint)), ["fp32", "int8_dynamic"], [IMAGES / "landscape.png"], tmp_path
    ).outcomes
    assert plain.peak == 10**9
    assert quantized.peak == 10**9 - plain.weights


def test_a_folder_of_omega_is_loaded_as_what_it_is(tmp_path: Path) -> None:
    data = IMAGES.parents[1] / "parity_omega"
    (tmp_path / "omega").mkdir()
    config = json.loads((data / "tiny_omega_config.json").read_text()) | {"model_type": VGGTOmegaConfig.model_type}
    (tmp_path / "omega" / "config.json").write_text(json.dumps(config))
    shutil.copy(data / "tiny_omega.safetensors", tmp_path / "omega" / "model.safetensors")
    models = Models(str(tmp_path / "omega"))
    images = [IMAGES / "landscape.png", IMAGES / "landscape_b.png"]
    found = compare_recipes(models, ["fp32", "int8_dynamic"], images, tmp_path)
    assert isinstance(models.get("int8_dynamic"), VGGTOmegaInt8)
    assert found.differences["rotation_degrees"]["max"] > 0


def test_only_the_last_models_stay(bare_checkpoint: Path) -> None:
    models = Models(str(bare_checkpoint))
    first = models.get("fp32")
    assert models.get("fp32") is first
    for recipe in ("fp16", "int8_dynamic")[:KEPT]:
        models.get(recipe)
    assert len(models._loaded) == KEPT
    assert models.get("fp32") is not first


# ---- forgetting ----


def test_old_files_are_forgotten_and_at_the_end_all() -> None:
    folder = ExpiringFolder("vggt-int8-test", 100)
    try:
        old, new = folder.path / "a" / "old.png", folder.path / "b" / "new.png"
        for file in (old, new):
            file.parent.mkdir()
            file.write_bytes(b"x")
        for path in (old, old.parent):
            os.utime(path, (time.time() - 200,) * 2)
        assert folder.path.stat().st_mode & 0o077 == 0  # of this user alone
        folder.forget()
        assert not old.exists()
        assert new.exists()
    finally:
        folder.close()
    assert not folder.path.exists()


def test_forgetting_needs_nobody_to_ask() -> None:
    folder = ExpiringFolder("vggt-int8-test", 0.2)
    try:
        (folder.path / "file").write_bytes(b"x")
        end = time.monotonic() + 30
        while (folder.path / "file").exists() and time.monotonic() < end:
            time.sleep(0.05)
        assert not (folder.path / "file").exists()
    finally:
        folder.close()
