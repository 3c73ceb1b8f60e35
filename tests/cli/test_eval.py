"""`vggt-int8 eval`: predictions are made once, scored as often as one likes, and never mixed up."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from vggt_int8 import VGGTInt8
from vggt_int8.eval.metrics import depth_scores, pose_errors, pose_scores
from vggt_int8.scenes import load_scene
from vggt_int8.scenes.stored import store_rendered

FILES = {"predictions", "scores.json", "report.md", "report.html"}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small stored scenes."""
    folder = tmp_path_factory.mktemp("scenes")
    for index in range(2):
        store_rendered(folder / f"scene_{index}", "free", index, 3, (42, 56), supersample=1)
    return folder


@pytest.fixture(scope="module")
def evaluated(tiny: Path, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.cli.conftest import Cli

    out = tmp_path_factory.mktemp("eval") / "out"
    Cli()("eval", tiny, "-r", "int8_dynamic", "--data", scenes, "-o", out, "--device", "cpu")
    return out


def again(out: Path, tmp_path: Path) -> Path:
    """A copy to play with."""
    return Path(shutil.copytree(out, tmp_path / "out"))


@pytest.mark.slow
def test_the_numbers_are_those_of_the_model_itself(evaluated: Path, tiny: Path, scenes: Path) -> None:
    document = json.loads((evaluated / "scores.json").read_text())
    assert {path.name for path in evaluated.iterdir()} == FILES
    assert document["scenes"] == 2
    plain, quantized = document["rows"]
    for row, recipe in ((plain, None), (quantized, "int8_dynamic")):
        model = VGGTInt8.from_pretrained(tiny, recipe=recipe).eval()
        for index in range(2):
            truth = load_scene(scenes / f"scene_{index}")
            with torch.inference_mode():
                output = model(truth.images)
            poses = pose_scores(*pose_errors(output.extrinsic, truth.extrinsic[None]))
            depth = depth_scores(output.depth[..., 0], truth.depth[None], truth.valid[None])
            assert row["scenes"]["auc_30"][index] == pytest.approx(poses.auc_30, abs=1e-3)
            assert row["scenes"]["abs_rel"][index] == pytest.approx(depth.abs_rel, rel=1e-4)
        assert row["scores"]["abs_rel"] == pytest.approx(sum(row["scenes"]["abs_rel"]) / 2)
    assert (plain["int8_layers"], plain["sqnr_db"]) == (0, None)
    assert quantized["int8_layers"] == len(quantized["sqnr_db"]) > 0
    change = quantized["differences"]["abs_rel"]
    wanted = 100 * (quantized["scores"]["abs_rel"] / plain["scores"]["abs_rel"] - 1)
    assert change["value"] == pytest.approx(wanted)
    assert change["low"] <= change["value"] <= change["high"]
    assert "differences" not in plain
    assert 0 < quantized["relative"]["depth"] < 0.5


@pytest.mark.slow
def test_a_static_checkpoint_shows_its_ranges_and_that_it_is_active(tiny: Path, scenes: Path, tmp_path: Path) -> None:
    from tests.cli.conftest import Cli

    cli = Cli()
    refused = cli("eval", tiny, "-r", "int8_static", "--data", scenes, "-o", tmp_path / "out", code=2)
    assert "--calibration IMAGES`, and name FOLDER among the models" in " ".join(refused.split())
    assert not (tmp_path / "out").exists()
    images = [load_scene(scene).images for scene in sorted(scenes.iterdir())]
    VGGTInt8.from_pretrained(tiny, recipe="int8_static_rotated", calibration=images).save_pretrained(
        tmp_path / "static"
    )
    cli("eval", tiny, tmp_path / "static", "--data", scenes, "-o", tmp_path / "out", "--device", "cpu")
    row = json.loads((tmp_path / "out" / "scores.json").read_text())["rows"][1]
    assert row["calibration"]["images"] == 6
    assert all(row["relative"][name] > 0 for name in ("pose_enc", "depth"))
    assert max(row["sqnr_db"].values()) < 100, "a layer was left exact"
    assert "Calibrated ranges of static layers" in (tmp_path / "out" / "report.html").read_text()


def test_the_report_opens_without_a_network(evaluated: Path) -> None:
    page = (evaluated / "report.html").read_text()
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert "url(" not in page
    assert "<script" not in page
    assert set(re.findall(r"https?://[\w./]+", page)) <= {"http://www.w3.org/2000/svg"}
    assert page.count("data:image/png;base64,") == 4  # depth and points of two scenes
    assert "SQNR of single layers" in page
    assert page.count("<svg ") == 1
    text = (evaluated / "report.md").read_text()
    assert text.index("## Difference from") < text.index("## Scores against the truth")
    assert re.search(r"^\| .*, int8_dynamic \| [+-][\d.]+ \[[+-][\d.]+, [+-][\d.]+\] ", text, re.M)


@pytest.mark.slow
def test_predictions_are_not_made_twice(
    cli, evaluated: Path, tiny: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = again(evaluated, tmp_path)
    monkeypatch.setattr("vggt_int8.cli.eval.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    common = ("eval", tiny, "-r", "int8_dynamic", "--data", scenes, "-o", out, "--device", "cpu")
    found = json.loads(cli(*common, "--json"))
    before = json.loads((evaluated / "scores.json").read_text())
    assert found["rows"][1]["scores"] == before["rows"][1]["scores"]
    assert json.loads(cli(*common, "--json", "--points", 50))["rows"][1]["scores"] != before["rows"][1]["scores"]


@pytest.mark.slow
def test_a_run_that_was_cut_off_goes_on(cli, evaluated: Path, tiny: Path, scenes: Path, tmp_path: Path) -> None:
    out = again(evaluated, tmp_path)
    (folder,) = (path for path in (out / "predictions").iterdir() if "int8_dynamic" in path.name)
    (folder / "0001.safetensors").unlink()
    kept = (folder / "0000.safetensors").stat().st_mtime_ns
    cli("eval", tiny, "-r", "int8_dynamic", "--data", scenes, "-o", out, "--device", "cpu")
    assert (folder / "0000.safetensors").stat().st_mtime_ns == kept
    assert (folder / "0001.safetensors").is_file()
    rows = [json.loads((path / "scores.json").read_text())["rows"] for path in (out, evaluated)]
    assert rows[0] == rows[1]


@pytest.mark.slow
def test_stale_predictions_are_refused_until_they_are_to_be_replaced(
    cli, evaluated: Path, tiny: Path, scenes: Path, tmp_path: Path
) -> None:
    out = again(evaluated, tmp_path)
    common = ("eval", tiny, "-r", "int8_dynamic", "--data", scenes, "-o", out, "--device", "cpu", "--scenes", 1)
    said = cli(*common, code=2)
    assert "are stale: data.scenes.scene_1 was" in said
    assert "choose another --out, or --overwrite" in said.replace("Choose", "choose")
    assert json.loads(cli(*common, "--overwrite", "--json"))["scenes"] == 1
    backend = cli("eval", tiny, "--data", scenes, "-o", out, "--device", "cpu", "--scenes", 1, "--backend",
                  "reference", code=2)  # fmt: skip
    assert "backend was 'auto' and is 'reference'" in backend


def test_a_quantizer_that_does_nothing_gets_no_row(
    cli, evaluated: Path, tiny: Path, scenes: Path, tmp_path: Path
) -> None:
    out = again(evaluated, tmp_path)
    plain, quantized = sorted((out / "predictions").iterdir(), key=lambda path: "int8" in path.name)
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    for name in ("0000.safetensors", "0001.safetensors"):
        with safe_open(quantized / name, "pt") as file:
            facts = file.metadata()
        save_file(load_file(plain / name), quantized / name, metadata=facts)
    common = ("eval", tiny, "-r", "int8_dynamic", "--data", scenes, "-o", out, "--device", "cpu")
    assert "outputs are exactly those of fp32" in cli(*common, code=1)


def test_a_quantized_first_model_is_said(cli, tiny_int8: Path, scenes: Path, tmp_path: Path) -> None:
    text = cli("eval", tiny_int8, "--data", scenes, "-o", tmp_path / "out", "--device", "cpu")
    assert "is quantized itself: differences are not from fp32" in text


def test_rendered_scenes(cli, tiny: Path, tmp_path: Path) -> None:
    small = ("--scenes", 1, "--views", 2, "--size", 28, 28, "--device", "cpu")
    found: dict[str, Any] = json.loads(cli("eval", tiny, "-o", tmp_path / "out", *small, "--json"))
    assert found["command"] == "eval"
    assert found["data"]["split"] == "held_out"
    assert "ate" not in found["rows"][0]["scores"], "two centres always fit"
    first = tmp_path / "out" / "predictions"
    kept = {path: path.stat().st_mtime_ns for path in first.rglob("0000.safetensors")}
    more = json.loads(cli("eval", tiny, "-o", tmp_path / "out", *small, "--scenes", 2, "--json"))
    assert more["rows"][0]["scenes"]["auc_30"][0] == found["rows"][0]["scenes"]["auc_30"][0]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "a scene is the same among more of them"
    said = cli("eval", tiny, "-o", tmp_path / "new", "--size", 30, 28, code=2)
    assert "--size is 30 28 pixels: height and width must be multiples of the model's patch size 14" in said
    store_rendered(tmp_path / "odd", "free", 0, 2, (30, 28), supersample=1)
    said = cli("eval", tiny, "-o", tmp_path / "new", "--data", tmp_path / "odd", code=2)
    assert f"{tmp_path / 'odd'} is 30 28 pixels" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--recipe", "int8_dynamik"), "did you mean 'int8_dynamic'"),
        (("--recipe", "int8_dynamic", "--recipe", "int8_dynamic"), "int8_dynamic is named twice"),
        (("--data", "nowhere"), "nowhere holds no stored scene"),
        (("--points", "2"), "--points: 2 is out of range"),
        (("--data", "nowhere", "--views", "3"), "--views makes synthetic scenes, and --data is nowhere"),
        (("--split", "test"), "there is no split 'test'"),
    ],
)
def test_mistakes_are_named_before_anything_is_loaded(
    cli, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    monkeypatch.setattr("vggt_int8.cli.eval.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    assert words in cli("eval", tiny, "-o", tmp_path / "out", "--device", "cpu", *arguments, code=2)
    assert list(tmp_path.iterdir()) == []


def test_other_peoples_folders_are_left_alone(cli, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert "'thesis.txt' is no file of an evaluation" in cli("eval", tiny, "-o", tmp_path, code=2)
    assert "is a file" in cli("eval", tiny, "-o", tmp_path / "thesis.txt", code=2)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "report.md").write_text("mine")
    assert "no predictions, so it is not ours" in cli("eval", tiny, "-o", tmp_path / "other", code=2)
