"""Quantization-aware training from end to end on a tiny network: what it writes, how it goes on, what it refuses."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.training.conftest import TINY_MODEL
from tests.training.runs import entries
from vggt_int8 import VGGTInt8, quantize
from vggt_int8.model import VGGT, VGGTConfig
from vggt_int8.quant.fake import FakeInt8Linear, fake_layers, fake_quantize, weight_codes
from vggt_int8.quant.plan import LayerPlan, make_plan, recipe_for
from vggt_int8.quant.storage import encode
from vggt_int8.recipe import RecipeError, load_recipe
from vggt_int8.training import qat
from vggt_int8.training.config import TrainingConfig
from vggt_int8.training.distiller import Distiller, choose_parameters
from vggt_int8.training.loop import RunLimits
from vggt_int8.training.qat_config import QatConfig, default_config, read_table, settings_for
from vggt_int8.training.sections import DataConfig
from vggt_int8.training.start import fresh_model
from vggt_int8.training.views import Album, find_scenes

SMALL = {**TINY_MODEL, "img_size": 16, "camera_iterations": 2, "dpt_features": 8, "dpt_out_channels": [8, 8, 8, 8]}
CONFIG = """
log_steps = 1
start = "nearest"
[data]
views = [2]
frames_per_step = 4
supersample = 1
workers = 0
[validation]
scenes = 2
views = [2]
every_steps = 2
[optimizer]
total_steps = 4
warmup_steps = 1
learning_rate = 1e-5
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network in floats, whose heads see more than noise."""
    folder = tmp_path_factory.mktemp("floats") / "model"
    config = TrainingConfig(model=SMALL, data=DataConfig(size=(16, 16)))
    fresh_model(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of three images."""
    folder = tmp_path_factory.mktemp("photos")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16, 3), dtype=np.uint8)
    for scene, images in zip("ab", pixels, strict=True):
        (folder / scene).mkdir()
        for number, image in enumerate(images):
            Image.fromarray(image).save(folder / scene / f"{number}.png")
    return folder


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "qat.toml"
    path.write_text(CONFIG)
    return path


def load_qat(path: Path, model: VGGTConfig) -> QatConfig:
    return settings_for(read_table(path), model, path)


def static_layers(plan: dict[str, LayerPlan]) -> list[tuple[str, LayerPlan]]:
    return [(name, layer) for name, layer in plan.items() if getattr(layer.scheme, "input_scales", 0)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


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


@pytest.mark.parametrize("recipe", [pytest.param("int8_dynamic", marks=pytest.mark.slow), "int8_static_rotated"])
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
    model: Path, photos: Path, config: Path, tmp_path: Path
) -> None:
    arguments: tuple[Any, ...] = (str(model), [photos])
    whole = qat.train_qat(*arguments, tmp_path / "whole", "int8_rotated", config=config, quiet=True)
    stopped = qat.train_qat(*arguments, tmp_path / "parts", "int8_rotated", config=config, max_minutes=0, quiet=True)
    assert (stopped.step, stopped.reason) == (1, "the time is over (max_minutes)")
    assert VGGTInt8.from_pretrained(tmp_path / "parts").quantization_plan
    parts = qat.train_qat(*arguments, tmp_path / "parts", "int8_rotated", config=config, quiet=True)
    assert parts == whole
    for place in ("run/checkpoint", "run/best", "."):
        one, other = weights(tmp_path / "whole" / place), weights(tmp_path / "parts" / place)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one), place


def build(model: Path, out: Path, config: QatConfig, recipe: str = "int8_dynamic") -> Distiller:
    teacher = qat.plain_network(str(model))
    student = qat.copy_of(teacher)
    fake_quantize(student, make_plan(student, load_recipe(recipe)))
    return Distiller(config, out, student, teacher, qat.Rendered(), {"recipe": "int8_dynamic"}, quiet=True)


@pytest.fixture
def settings(config: Path) -> QatConfig:
    return load_qat(config, VGGTConfig(**SMALL))


@pytest.mark.slow
def test_the_best_weights_are_kept(
    model: Path, settings: QatConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    totals = iter([3.0, 1.0, 2.0])
    distiller = build(model, tmp_path / "run", settings)
    monkeypatch.setattr(distiller, "score", lambda scenes: {"2 views": {"total": next(totals)}})
    distiller.train(RunLimits())
    assert distiller.best == {"step": 2, "loss": 1.0, "start_loss": 3.0}
    last = {name: value.detach().clone() for name, value in distiller.network.named_parameters()}
    assert distiller.restore_best()["step"] == 2
    assert any(not torch.equal(last[name], value) for name, value in distiller.network.named_parameters())
    again = build(model, tmp_path / "run", settings)
    assert again.best == distiller.best


@pytest.mark.slow
def test_outlier_columns_are_not_recorded(model: Path, settings: QatConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot record layers with an outlier_threshold"):
        build(model, tmp_path, dataclasses.replace(settings, cuda_graph=True), "llm_int8")
    losses, _ = (distiller := build(model, tmp_path, settings, "llm_int8")).train_step(next(distiller.items(1)))
    assert losses["total"].isfinite()


def test_where_the_truth_is_known_it_is_scored_too(model: Path, settings: QatConfig, tmp_path: Path) -> None:
    scores = build(model, tmp_path, settings).score(None)["2 views"]
    assert {"total", "features", "pose", "auc_5", "abs_rel"} <= scores.keys()


def test_only_what_is_asked_for_is_trained(model: Path, settings: QatConfig, tmp_path: Path) -> None:
    settings = dataclasses.replace(settings, trained="norms")
    distiller = build(model, tmp_path, settings)
    before = {name: value.detach().clone() for name, value in distiller.network.named_parameters()}
    distiller.train(RunLimits(max_steps=1, validate_at_end=False))
    changed = {name for name, value in distiller.network.named_parameters() if not torch.equal(before[name], value)}
    assert any("norm1.weight" in name for name in changed)
    assert any(name.endswith("ls1.gamma") for name in changed)
    assert all(name.endswith((".bias", ".gamma")) or "norm" in name for name in changed)


def test_the_track_head_stays_as_it_is() -> None:
    tracker = {"enable_track": True, "track_features": 32, "track_hidden_size": 64, "track_iterations": 2}
    network = VGGT(VGGTConfig(**{**SMALL, **tracker, "track_corr_levels": 2, "track_corr_radius": 2}))
    choose_parameters(network, QatConfig())
    asked = {name for name, value in network.named_parameters() if value.requires_grad}
    assert asked
    assert not any(name.startswith("track_head") or name.endswith("mask_token") for name in asked)


@pytest.mark.slow
def test_checkpointed_blocks_learn_the_same(model: Path, settings: QatConfig, tmp_path: Path) -> None:
    runs = []
    for checkpointing in (False, True):
        config = dataclasses.replace(settings, gradient_checkpointing=checkpointing)
        distiller = build(model, tmp_path / str(checkpointing), config)
        assert distiller.network.aggregator.frame_blocks[0].gradient_checkpointing is checkpointing
        distiller.train(RunLimits(max_steps=2, validate_at_end=False))
        runs.append(dict(distiller.network.named_parameters()))
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())


def test_what_cannot_be_trained_is_named_and_nothing_is_written(
    model: Path, photos: Path, config: Path, tmp_path: Path
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


@pytest.mark.slow
def test_a_run_is_not_mixed_with_another(model: Path, photos: Path, config: Path, tmp_path: Path) -> None:
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
    assert all(torch.equal(value, before[name]) for name, value in weights(out).items())


@pytest.mark.slow
def test_a_run_that_breaks_says_so_and_leaves_what_was_good(model: Path, settings: QatConfig, tmp_path: Path) -> None:
    optimizer = dataclasses.replace(settings.optimizer, learning_rate=1e30)
    distiller = build(model, tmp_path, dataclasses.replace(settings, optimizer=optimizer))
    with pytest.raises(FloatingPointError, match="The last checkpoint is intact; lower the learning rate"):
        distiller.train(RunLimits())
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "best").values())


@pytest.mark.slow
def test_two_processes_train_together(model: Path, photos: Path, config: Path, tmp_path: Path) -> None:
    """`accelerate launch` on two CPU processes: the same command as on two GPUs."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "vggt_int8"]
    command += ["qat", str(model), str(photos), "-o", str(tmp_path / "out"), "--config", str(config)]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("stopped at step 4") == 1
    assert len(entries(tmp_path / "out" / "run", "train")) == 4
    assert VGGTInt8.from_pretrained(tmp_path / "out").quantization_plan


@pytest.mark.gpu
def test_recorded_steps_learn_as_others_do(model: Path, settings: QatConfig, tmp_path: Path) -> None:
    runs = []
    for graph in (False, True):
        config = dataclasses.replace(settings, cuda_graph=graph)
        build(model, tmp_path / str(graph), config).train(RunLimits(validate_at_end=False))
        runs.append([entry["total"] for entry in entries(tmp_path / str(graph), "train")])
    assert len(runs[0]) == 4
    assert runs[0] == pytest.approx(runs[1], rel=1e-3)


@pytest.mark.slow
def test_static_scales_are_found_learned_and_written(
    model: Path, photos: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    totals = iter([3.0, 2.0, 1.0])  # so that the last step is the best
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


@pytest.mark.slow
def test_a_recipe_with_folded_factors_trains_what_is_folded(
    model: Path, photos: Path, config: Path, tmp_path: Path
) -> None:
    recipe = load_recipe("int8_rotated")
    assert recipe.smoothing == "weights"
    end = qat.train_qat(str(model), [photos], tmp_path / "out", recipe, config=config, quiet=True)
    name = "aggregator.frame_blocks.1.mlp.fc1"
    stored = VGGTInt8.from_pretrained(tmp_path / "out").get_submodule(name)
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


def test_static_scales_learn_unless_they_are_fixed(model: Path) -> None:
    recipe = load_recipe("int8_static_rotated")
    for scales in ("learned", "fixed"):
        network = qat.plain_network(str(model))
        plan = make_plan(network, recipe)
        fake_quantize(network, plan, {name: torch.ones(p.scheme.input_scales) for name, p in static_layers(plan)})
        choose_parameters(network, QatConfig(scales=scales))
        static = [fake.log_input_scale for _, fake in fake_layers(network) if fake.log_input_scale is not None]
        assert {scale.requires_grad for scale in static} == {scales == "learned"}


def test_defaults_by_size(tmp_path: Path) -> None:
    small, large = default_config(VGGTConfig(**SMALL)), default_config(VGGTConfig())
    assert (small.trained, small.gradient_checkpointing, small.mixed_precision) == ("all", False, "no")
    assert (large.trained, large.gradient_checkpointing, large.mixed_precision) == ("norms", True, "bf16")
    assert (small.data.size, large.data.size) == ((16, 16), (518, 518))
    path = tmp_path / "qat.toml"
    path.write_text("[optimizer]\ntotal_steps = 7\n")
    read = load_qat(path, VGGTConfig(**SMALL))
    assert read == dataclasses.replace(small, optimizer=dataclasses.replace(small.optimizer, total_steps=7))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("trained = 'most'", "trained must be one of all, norms, got 'most'"),
        ("scales = 'free'", "scales must be one of learned, fixed"),
        ("compile = ['blocks']", "compile can name render alone here, not blocks"),
        ("[data]\ntracks = 3", "data.tracks is 3, but tracks are not distilled"),
        ("[data]\nsize = [20, 16]", r"data.size \[20, 16\] must be multiples of the patch size 8"),
        ("[loss]\nposes = 1.0", "unknown keys 'poses'"),
        ("[loss]\npose = 0\ndepth = 0\npoints = 0\nconfidence = 0\nfeatures = 0", "there is nothing to learn"),
        ("[model]\ndepth = 3", "unknown keys 'model'"),
        ("[loss]\npose = -1.0", "loss.pose must be at least 0"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "qat.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"qat.toml: .*{words}"):
        load_qat(path, VGGTConfig(**SMALL))
