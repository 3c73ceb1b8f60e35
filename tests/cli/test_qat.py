"""`vggt-int8 qat` from the command line: its document, and what it says before a model is loaded."""

import json
from pathlib import Path
from typing import Any

import pytest

from vggt_int8 import VGGTInt8

CONFIG = """
log_steps = 1
[data]
views = [2]
frames_per_step = 2
supersample = 1
workers = 0
[validation]
scenes = 1
views = [2]
[optimizer]
total_steps = 2
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "qat.toml"
    path.write_text(CONFIG)
    return path


@pytest.mark.slow
def test_a_run_is_a_document_and_a_checkpoint(
    cli, tiny: Path, photos: list[Path], config: Path, tmp_path: Path
) -> None:
    scene = tmp_path / "scene"
    scene.mkdir()
    for photo in photos:
        (scene / photo.name).write_bytes(photo.read_bytes())
    out = tmp_path / "out"
    arguments = ("qat", tiny, scene, "-o", out, "--recipe", "int8_dynamic", "--config", config)
    found = json.loads(cli(*arguments, "--total-steps", "1", "--json"))
    assert (found["command"], found["step"], found["total_steps"]) == ("qat", 1, 1)
    assert found["best_loss"] <= found["start_loss"]
    assert VGGTInt8.from_pretrained(found["out"]).quantization_plan
    inspected = json.loads(cli("inspect", out, "--json"))["training"]
    assert (inspected["data"]["images"], inspected["steps"]) == (2, 1)
    assert "trained for INT8: data images 2, data kind images" in cli("inspect", out)
    said = cli(*arguments, "--quiet")
    assert "stopped at step 2: all steps are done" in said
    assert str(out) in said


@pytest.mark.slow
def test_static_scales_are_calibrated_on_what_is_said(
    cli, tiny: Path, photos: list[Path], config: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ("qat", tiny, photos[0].parent, "-o", out, "--config", config, "--total-steps", "1", "--json")
    assert json.loads(cli(*arguments, "--calibration", photos[0]))["recipe"] == "int8_static_rotated"
    found = json.loads(cli("inspect", out, "--json"))
    assert found["calibration"]["images"] == 1
    assert found["training"]["scales"] == "learned"
    config.write_text('start = "nearest"\n' + CONFIG)  # which reads no images, as GPTQ does
    arguments = ("qat", tiny, photos[0].parent, "-o", tmp_path / "other", "--config", config)
    assert "needs no images" in cli(*arguments, "--calibration", photos[0], "--recipe", "int8_rotated", code=2)


def fails(*_: Any, **__: Any) -> None:
    raise AssertionError("a model was loaded before this was said")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere",), "no such folder of images: nowhere"),
        (("synthetic", "nowhere"), "'synthetic' stands alone"),
        (("synthetic", "--recipe", "int8_dynamc"), "did you mean"),
        (("synthetic", "--total-steps", "0"), "0 is out of range"),
        (("synthetic", "--config", "broken.toml"), "broken.toml: "),
        (("synthetic", "-o", "mine"), "holds a model already"),
        (("synthetic", "-o", "broken.toml"), "is a file"),
    ],
)
def test_mistakes_are_named_before_a_model_is_loaded(
    cli, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    monkeypatch.setattr("vggt_int8.pretrained.VGGTInt8.from_pretrained", fails)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.toml").write_text("= 3")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    out = () if "-o" in arguments else ("-o", "out")
    assert words in cli("qat", tiny, *arguments, *out, code=2)
    assert sorted(tmp_path.rglob("*")) == before
