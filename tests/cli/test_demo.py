"""`vggt-int8 demo` needs nothing but the package, and its files agree with its table."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from vggt_int8 import VGGTConfig, VGGTInt8, available_recipes
from vggt_int8.cli import app, console, demo
from vggt_int8.eval.metrics import depth_scores, pose_errors, pose_scores
from vggt_int8.export import load_scene as load_saved
from vggt_int8.export import owned_files
from vggt_int8.scenes import available_scenes, load_scene

# Of the shipped recipes one of each kind: of floats, without images, with images, and the longest name of all.
RECIPES = ["fp16", "int8_dynamic", "int8_smooth_rotated", "int8_static", "int8_weight_only"]
NAMES = ["fp32", *RECIPES]
SCENES = available_scenes()[:2]
SMALL = {
    "img_size": 112, "patch_size": 16, "embed_dim": 64, "encoder_depth": 1, "encoder_num_heads": 1, "depth": 2,
    "num_heads": 1, "camera_depth": 1, "camera_num_heads": 2, "dpt_features": 32,
    "dpt_out_channels": [32, 32, 32, 32], "dpt_layers": [0, 0, 1, 1], "enable_track": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network with random weights, in the place of the embedded model."""
    torch.manual_seed(0)
    model = VGGTInt8(VGGTConfig(**SMALL))
    torch.nn.init.ones_(model.get_parameter("camera_head.pose_branch.fc2.bias")[7:])  # a field of view
    folder = tmp_path_factory.mktemp("mini")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def results(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the text of one run in a terminal of 80 columns."""
    out = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "EMBEDDED_MODELS", {"embedded": small_model})
        patch.setattr(demo, "TIMED_RUNS", 1)
        patch.setattr("vggt_int8.recipe.available_recipes", lambda: RECIPES)
        patch.setattr("vggt_int8.scenes.available_scenes", lambda: SCENES)
        patch.setattr(console.out, "_width", 80)
        result = CliRunner().invoke(app, ["demo", "-o", str(out)])
    assert result.exit_code == 0, result.output
    return out, result.stdout


@pytest.mark.slow
def test_the_table_says_what_the_files_hold(results: tuple[Path, str]) -> None:
    out, text = results
    assert set(RECIPES) < set(available_recipes())
    assert max(map(len, NAMES)) == max(map(len, available_recipes())), "the widest table"
    assert {path.name for path in out.iterdir()} == {*SCENES, "report.json"}
    rows = {row["recipe"]: row for row in json.loads((out / "report.json").read_text())["rows"]}
    assert list(rows) == NAMES
    for name, row in rows.items():
        (line,) = [line for line in text.splitlines() if line.split()[0] == name]
        cells = [f"{row['megabytes']:.1f} MB", f"{row['rotation_error']:.2f}°", f"{row['translation_error']:.2f}°"]
        assert all(cell in line for cell in [*cells, f"{row['abs_rel']:.4f}"])
        assert len(line) <= 80
    assert "…" not in text, "cut off at 80 characters"
    assert "random" not in text
    assert rows["int8_dynamic"]["megabytes"] < 0.35 * rows["fp32"]["megabytes"]
    assert rows["fp32"]["depth_difference"] is None
    for name in RECIPES:
        assert 0 < rows[name]["pose_difference"] < 0.1
    for name in set(RECIPES) - {"fp16"}:
        assert rows[name]["depth_difference"] > rows["fp16"]["depth_difference"]


@pytest.mark.slow
def test_errors_follow_from_the_written_cameras_and_depths(results: tuple[Path, str]) -> None:
    out, _ = results
    rows = {row["recipe"]: row for row in json.loads((out / "report.json").read_text())["rows"]}
    rotation, translation, abs_rel = [], [], []
    for name in SCENES:
        truth, folder = load_scene(name), out / name / "int8_dynamic"
        cameras = json.loads((folder / "cameras.json").read_text())["images"]
        errors = pose_errors(torch.tensor([[c["extrinsic"] for c in cameras]]), truth.extrinsic[None])
        depth = torch.stack([torch.from_numpy(np.load(path)) for path in sorted((folder / "depth").glob("*.npy"))])
        scores = depth_scores(depth[None], truth.depth[None], truth.valid[None])
        assert rows["int8_dynamic"]["scenes"][name]["abs_rel"] == pytest.approx(scores.abs_rel, rel=1e-4)
        rotation.append(errors[0])
        translation.append(errors[1])
        abs_rel.append(scores.abs_rel)
    pose = pose_scores(torch.cat(rotation), torch.cat(translation))
    assert rows["int8_dynamic"]["rotation_error"] == pytest.approx(pose.rotation_median, abs=0.01)
    assert rows["int8_dynamic"]["translation_error"] == pytest.approx(pose.translation_median, abs=0.01)
    assert rows["int8_dynamic"]["abs_rel"] == pytest.approx(sum(abs_rel) / len(SCENES), rel=1e-4)


@pytest.mark.slow
def test_every_scene_has_a_picture_and_point_clouds(results: tuple[Path, str]) -> None:
    out, _ = results
    for name in SCENES:
        width, height = Image.open(out / name / "depth.png").size
        assert width > 8 * 112
        assert height > 6 * 112
        for recipe in ["ground_truth", *NAMES]:
            header = (out / name / recipe / "points.ply").read_bytes()[:200].decode("ascii", errors="ignore")
            count = int(header.split("element vertex ")[1].split()[0])
            assert count >= 0.7 * 8 * 112 * 112
            assert len(list((out / name / recipe / "depth").glob("*.npy"))) == 8
            assert len(load_saved(out / name / recipe)) == 8, "for `view` and `export`"


def test_missing_weights_are_an_error_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "EMBEDDED_MODELS", {"embedded": tmp_path / "absent"})
    with pytest.raises(FileNotFoundError, match=r"absent/model.safetensors is missing.*install vggt-int8 again"):
        demo.embedded_model("embedded")


@pytest.mark.slow
def test_only_an_earlier_demo_is_replaced(small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "EMBEDDED_MODELS", {"embedded": small_model})
    monkeypatch.setattr(demo, "TIMED_RUNS", 1)
    monkeypatch.setattr("vggt_int8.recipe.available_recipes", lambda: ["int8_dynamic"])
    monkeypatch.setattr("vggt_int8.scenes.available_scenes", lambda: ["room"])
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "notes.txt").write_text("precious")
    (tmp_path / "report.json").write_text('{"mine": 1}')
    refused = CliRunner().invoke(app, ["demo", "-o", str(tmp_path)])
    assert refused.exit_code != 0
    assert (tmp_path / "room" / "notes.txt").read_text() == "precious"
    with_overwrite = CliRunner().invoke(app, ["demo", "-o", str(tmp_path), "--overwrite"])
    assert with_overwrite.exit_code == 2
    assert "report.json, room/notes.txt" in " ".join(with_overwrite.output.split())
    assert json.loads((tmp_path / "report.json").read_text()) == {"mine": 1}
    (tmp_path / "report.json").rename(tmp_path / "mine.json")
    (tmp_path / "room").rename(tmp_path / "my room")
    for options in (["--overwrite"], []):
        result = CliRunner().invoke(app, ["demo", "-o", str(tmp_path), *options])
        assert result.exit_code == 0, result.output
        assert "room/depth.png" in owned_files(tmp_path, "demo")
        assert (tmp_path / "my room" / "notes.txt").read_text() == "precious"
