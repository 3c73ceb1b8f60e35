"""Quantization-aware training from end to end: what it writes, how it goes on, what it refuses."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from tests.training.qat.conftest import CONFIG, static_layers, weights
from tests.training.runs import entries
from tests.warm import python
from vggt_int8 import VGGTInt8, quantize
from vggt_int8.quant.fake import FakeInt8Linear, fake_quantize, weight_codes
from vggt_int8.quant.plan import make_plan, recipe_for
from vggt_int8.quant.storage import encode
from vggt_int8.recipe import RecipeError, load_recipe
from vggt_int8.training import qat
from vggt_int8.training.distiller import Distiller
from vggt_int8.training.qat_config import QatConfig
from vggt_int8.training.views import Album, find_scenes


@pytest.fixture(scope="module")
def rotated(model: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, qat.QatEnd]:
    """The folder of a whole run under int8_rotated, and how it ended."""
    folder = tmp_path_factory.mktemp("rotated")
    (folder / "qat.toml").write_text(CONFIG)
    settings: dict[str, Any] = {"config": folder / "qat.toml", "quiet": True}
    return folder / "out", qat.train_qat(str(model), [photos], folder / "out", "int8_rotated", **settings)


@pytest.mark.slow
def test_images_become_an_int8_checkpoint(model: Path, photos: Path, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    config.write_text(CONFIG.replace('start = "nearest"', ""))
    end = qat.train_qat(str(model), [photos], out, "int8_rotated", config=config, quiet=True)
    assert (end.step, end.total_steps, end.reason) == (4, 4, "all steps are done")
    assert end.best_loss <= end.start_loss
    trained = weights(out / "run" / "best")
    stored = weights(out)
    loaded = VGGTInt8.from_pretrained(out)
    name = "aggregator.frame_blocks.1.mlp.fc2"
    group = loaded.get_submodule(name).rotation
    codes, scale = encode(trained[f"weight.{name}.weight"], 0, group)
    assert group == 128
    assert torch.equal(stored[f"{name}.weight"][0], codes)
    assert torch.equal(stored[f"{name}.weight_scale"], scale)
    facts = json.loads((out / "config.json").read_text())["quantization_config"]["training"]
    assert (facts["data"]["images"], facts["start"]) == (6, "gptq")
    assert (facts["step"], facts["steps"], facts["loss"]) == (end.best_step, 4, end.best_loss)
    card = (out / "README.md").read_text()
    assert "## Training" in card
    assert "| data images | `6` |" in card
    assert [entry["step"] for entry in entries(out / "run", "validation")] == [0, 2, 4]
    assert "training" in VGGTInt8.from_pretrained(out).config.quantization_config.to_dict()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["int8_dynamic", "int8_static_rotated"])
def test_the_network_that_was_trained_is_the_one_that_is_written(
    model: Path, photos: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    """The network with fake layers and the INT8 model that is written give the same tokens."""
    totals = iter([3.0, 2.0, 1.0])  # so that the last step is the best
    monkeypatch.setattr(Distiller, "score", lambda *_: {"2 views": {"total": next(totals)}})
    end = qat.train_qat(str(model), [photos], tmp_path / "out", recipe, config=config, quiet=True)
    assert (end.best_step, end.best_loss, end.start_loss) == (4, 1.0, 3.0)
    student = qat.plain_network(str(model))
    plan = make_plan(student, load_recipe(recipe))
    fake_quantize(student, plan, {name: torch.ones(layer.scheme.input_scales) for name, layer in static_layers(plan)})
    state = {name.removeprefix("weight."): value for name, value in weights(tmp_path / "out" / "run" / "best").items()}
    student.load_state_dict(state)
    for module in student.modules():  # what is kept is stored in fp16
        for parameter in module.parameters(recurse=False):
            if not isinstance(module, FakeInt8Linear):
                parameter.data = parameter.data.half().float()
    int8 = VGGTInt8.from_pretrained(tmp_path / "out", backend="reference")
    images = torch.rand(1, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = (net.aggregator(images, [1])[1] for net in (student, int8))
    assert torch.equal(ours, theirs)


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_to_the_last_bit(
    model: Path, photos: Path, config: Path, tmp_path: Path, rotated: tuple[Path, qat.QatEnd]
) -> None:
    arguments: tuple[Any, ...] = (str(model), [photos])
    stopped = qat.train_qat(*arguments, tmp_path / "parts", "int8_rotated", config=config, max_minutes=0, quiet=True)
    assert (stopped.step, stopped.reason) == (1, "the time is over (max_minutes)")
    assert VGGTInt8.from_pretrained(tmp_path / "parts").quantization_plan
    parts = qat.train_qat(*arguments, tmp_path / "parts", "int8_rotated", config=config, quiet=True)
    whole, end = rotated
    assert parts == end
    for place in ("run/checkpoint", "run/best", "."):
        one, other = weights(whole / place), weights(tmp_path / "parts" / place)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one), place


@pytest.mark.slow
def test_what_cannot_be_trained_is_named_and_nothing_is_written(
    model: Path, photos: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    int8, out = tmp_path / "int8", tmp_path / "out"
    quantize(VGGTInt8.from_pretrained(model), "int8_dynamic").save_pretrained(int8)
    (tmp_path / "one" / "scene").mkdir(parents=True)
    Image.new("RGB", (16, 16)).save(tmp_path / "one" / "scene" / "0.png")

    def refused(error: type[Exception], words: str, **changes: Any) -> None:
        arguments: dict[str, Any] = {"model": str(model), "data": [photos], "out": out, "recipe": "int8_dynamic"}
        with pytest.raises(error, match=words):
            qat.train_qat(**{**arguments, **changes}, config=config, quiet=True)
        assert not out.exists()

    refused(ValueError, "is INT8 already: training starts from the floating-point model", model=str(int8))
    refused(ValueError, "no images given", data=[])
    refused(ValueError, "needs two views or more, and the folders have 1", data=[tmp_path / "one"])
    refused(ValueError, "'synthetic' stands alone", data=["synthetic", photos])
    refused(RecipeError, "quantizes no layer", recipe="fp16")
    refused(RecipeError, "calibration would have no effect", calibration=[photos / "a"])
    refused(FileExistsError, "holds a model already", out=int8)
    monkeypatch.setattr("vggt_int8.disk.shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    monkeypatch.setattr(qat, "prepare_student", None)  # which may take minutes to calibrate
    refused(OSError, "No space left on device: about", recipe="int8_static")


@pytest.mark.slow
def test_a_run_is_not_mixed_with_another(
    model: Path, photos: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    arguments: dict[str, Any] = {"config": config, "quiet": True, "max_minutes": 0}
    qat.train_qat(str(model), [photos], out, "int8_dynamic", **arguments)
    before = weights(out)
    with pytest.raises(ValueError, match="is of another recipe"):
        qat.train_qat(str(model), [photos], out, "int8_rotated", **arguments)
    other = VGGTInt8.from_pretrained(model)
    other.aggregator.camera_token.data += 1
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="is of another model"):
        qat.train_qat(str(tmp_path / "other"), [photos], out, "int8_dynamic", **arguments)
    monkeypatch.setattr(qat, "prepare_student", lambda *_: pytest.fail("it was calibrated first"))
    with pytest.raises(ValueError, match="is of another data"):
        qat.train_qat(str(model), [photos / "a"], out, "int8_dynamic", **arguments)
    assert all(torch.equal(value, before[name]) for name, value in weights(out).items())


TOGETHER = """
import sys
from accelerate import debug_launcher
from vggt_int8.cli import app
import vggt_int8.training.qat  # once for both, which are forks
debug_launcher(app, (sys.argv[1:],), num_processes=2)
"""


@pytest.mark.slow
def test_two_processes_train_together(model: Path, photos: Path, config: Path, tmp_path: Path) -> None:
    """On the CPU, as on two GPUs. A launcher starts them in tests/training/test_processes.py."""
    result = python("-c", TOGETHER, "qat", model, photos, "-o", tmp_path / "out", "--config", config)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("stopped at step 4") == 1
    assert len(entries(tmp_path / "out" / "run", "train")) == 4
    assert VGGTInt8.from_pretrained(tmp_path / "out").quantization_plan


@pytest.mark.slow
def test_static_scales_are_found_learned_and_written(
    model: Path, photos: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    totals = iter([3.0, 2.0, 1.0, 1.0])  # so that the last step is the best
    monkeypatch.setattr(Distiller, "score", lambda *_: {"2 views": {"total": next(totals)}})
    qat.train_qat(str(model), [photos], tmp_path / "out", "int8_static_rotated", config=config, quiet=True)
    loaded = VGGTInt8.from_pretrained(tmp_path / "out")
    calibrated = VGGTInt8.from_pretrained(model)
    images = Album.read(find_scenes([photos]), calibrated.config).calibration(QatConfig(), 32)
    quantize(calibrated, "int8_static_rotated", calibration=images)
    facts = loaded.config.quantization_config.calibration
    assert facts["images"] == 6
    assert facts["sha256"] == calibrated.config.quantization_config.calibration["sha256"]
    changed = 0
    for name, ranges in facts["ranges"].items():
        scale, before = loaded.get_submodule(name).input_scale, calibrated.get_submodule(name).input_scale
        assert scale.shape == before.shape == (2,)
        assert torch.allclose(scale * 127, torch.tensor(ranges), rtol=1e-6)
        assert torch.allclose(scale, before, rtol=5e-3), "three steps at a rate of 1e-3"
        changed += not torch.allclose(scale, before, rtol=1e-5)
    assert changed > len(facts["ranges"]) / 2
    # The same command again goes on from its checkpoint, which has all that calibration finds.
    monkeypatch.setattr(qat, "prepare_student", lambda *_: pytest.fail("it was calibrated again"))
    state = weights(tmp_path / "out")
    qat.train_qat(str(model), [photos], tmp_path / "out", "int8_static_rotated", config=config, quiet=True)
    again = weights(tmp_path / "out")
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)
    assert VGGTInt8.from_pretrained(tmp_path / "out").config.quantization_config.calibration == facts


@pytest.mark.slow
def test_a_recipe_with_folded_factors_trains_what_is_folded(model: Path, rotated: tuple[Path, qat.QatEnd]) -> None:
    recipe, (out, end) = load_recipe("int8_rotated"), rotated
    assert recipe.smoothing == "weights"
    name = "aggregator.frame_blocks.1.mlp.fc1"
    stored = VGGTInt8.from_pretrained(out).get_submodule(name)
    untrained = quantize(VGGTInt8.from_pretrained(model), recipe).get_submodule(name)
    assert torch.allclose(stored.weight_scale, untrained.weight_scale, rtol=1e-2), "folded once, not twice"
    plain = quantize(VGGTInt8.from_pretrained(model), dataclasses.replace(recipe, smoothing=0)).get_submodule(name)
    assert not torch.allclose(stored.weight_scale, plain.weight_scale, rtol=1e-2)
    assert end.best_loss <= end.start_loss


@pytest.mark.slow
def test_training_begins_at_the_codes_that_inputs_choose(model: Path) -> None:
    recipe = dataclasses.replace(load_recipe("int8_static_rotated"), rounding="gptq")
    images = torch.rand(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    teacher = qat.plain_network(str(model))
    student, found = qat.prepare_student(teacher, make_plan(teacher, recipe_for(teacher, recipe)), recipe, images)
    int8 = quantize(VGGTInt8.from_pretrained(model), recipe, calibration=images)
    assert found is not None
    moved = 0
    for name, codes in found.codes.items():
        stored, module = int8.get_submodule(name), student.get_submodule(name)
        weight = module.parametrizations.weight.original if hasattr(module, "parametrizations") else module.weight
        assert torch.equal(stored.codes, codes)
        assert torch.equal(weight_codes(weight, rotation=stored.rotation)[0], codes)
        moved += not torch.equal(encode(teacher.get_submodule(name).weight, 0, stored.rotation)[0], codes)
    assert moved > len(found.codes) / 2
