"""Networks that are smoothed by what calibration images show: exact in floats, repeatable, saved and loaded again."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.states import assert_same_state
from tests.usable import running, skip_unless_usable
from vggt_int8 import CheckpointError, RecipeError, VGGTInt8, load_recipe, quantize
from vggt_int8.calibration import CalibrationError, inputs_for
from vggt_int8.difference import relative_error
from vggt_int8.eval.outliers import with_outliers
from vggt_int8.kernels.reference import rotate
from vggt_int8.pretrained.quantizer import VGGTInt8QuantizationConfig
from vggt_int8.quant import Int8Linear, make_plan, quantize_module
from vggt_int8.quant.seams import find_seams
from vggt_int8.quant.unfold import folds_between
from vggt_int8.recipe import Scheme

pytestmark = pytest.mark.filterwarnings("ignore:calibrated with")
Make = Callable[[], VGGTInt8]


@pytest.fixture(scope="module")
def rotated(bare_checkpoint: Path, scenes: Tensor) -> VGGTInt8:
    """Under int8_smooth_rotated. Read only."""
    model = VGGTInt8.from_pretrained(bare_checkpoint)
    return quantize(model, "int8_smooth_rotated", "reference", calibration=scenes)


def inputs_of(model: nn.Module, name: str, scenes: Tensor) -> Tensor:
    """What a linear sees on these scenes, in the order of calibration, which decides the first frame: [rows, K]."""
    seen: list[Tensor] = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, -2)))
    with torch.no_grad():
        for images in inputs_for(model, scenes, 32):
            model(images)
    hook.remove()
    return torch.cat(seen)


@pytest.mark.parametrize("recipe", [pytest.param("int8_smooth", marks=pytest.mark.slow), "int8_smooth_rotated"])
def test_outlier_channels_cost_next_to_nothing(make_bare: Make, scenes: Tensor, recipe: str) -> None:
    plain = make_bare()
    hard = with_outliers(plain, 5, share=0.1)
    tokens = {}
    for name, model, smoothing in (
        ("exact", plain, None),
        ("easy", plain, 0),
        ("smoothed", hard, "search"),
        ("rough", hard, 0),
    ):
        model = copy.deepcopy(model)
        if smoothing is not None:
            given = {"calibration": scenes} if smoothing else {}
            quantize(model, replace(load_recipe(recipe), smoothing=smoothing), "reference", **given)
        with torch.no_grad():
            tokens[name] = torch.cat(list(model.aggregator(scenes[:1], [0, 1]).values()))
    error = {name: relative_error(found, tokens["exact"]) for name, found in tokens.items() if name != "exact"}
    assert error["smoothed"] < 1.2 * error["easy"]
    assert error["rough"] > 2 * error["easy"]


def test_a_strength_folds_what_the_inputs_say(make_bare: Make, scenes: Tensor) -> None:
    """Factors of a seam, recovered from the result, are those of the formula on inputs that are seen here."""
    model = make_bare()
    recipe = replace(load_recipe("int8_smooth"), smoothing=0.5)
    smoothed = quantize(make_bare(), recipe, calibration=scenes)
    folds = folds_between(model, smoothed)
    for name in ("aggregator.global_blocks.1.mlp.fc1", "aggregator.frame_blocks.0.attn.proj"):
        x, weight = inputs_of(model, name, scenes).double(), model.get_submodule(name).weight.detach().double()
        sizes = x.square().mean(0).sqrt()
        f = (sizes / weight.square().mean(0).sqrt()).sqrt()
        f *= (sizes / f).max() / sizes.max()
        assert torch.allclose(folds[name].columns, f, rtol=2e-2), name
    strengths = smoothed.config.quantization_config.calibration["smoothing"]
    assert strengths == dict.fromkeys((seam.reader for seam in find_seams(model, make_plan(model, recipe))), 0.5)


@pytest.mark.parametrize("recipe", [pytest.param("int8_smooth", marks=pytest.mark.slow), "int8_smooth_rotated"])
def test_the_same_from_any_order_and_any_way_and_loaded_again(
    make_bare: Make, bare_checkpoint: Path, scenes: Tensor, tmp_path: Path, recipe: str
) -> None:
    one = quantize(make_bare(), recipe, calibration=scenes)
    assert_same_state(one, quantize(make_bare(), recipe, calibration=scenes[[2, 0, 1]].flip(1)))
    loaded = VGGTInt8.from_pretrained(bare_checkpoint, recipe=recipe, calibration=scenes)
    assert_same_state(one, loaded)
    loaded.save_pretrained(tmp_path)
    again = VGGTInt8.from_pretrained(tmp_path)
    assert_same_state(one, again)
    facts = again.config.quantization_config.calibration
    assert facts == one.config.quantization_config.calibration
    assert facts["images"] == 6
    assert facts["ranges"] == {}
    assert set(facts["smoothing"].values()) <= {0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8}
    assert len(facts["smoothing"]) > 10
    assert again.config.quantization_config.recipe["smoothing"] == "search"


@pytest.mark.slow
@pytest.mark.parametrize("backend", running("dynamic"))
def test_every_backend_runs_it(rotated: VGGTInt8, scenes: Tensor, backend: str) -> None:
    skip_unless_usable(backend, Scheme("dynamic", rotation=256))
    model = copy.deepcopy(rotated)
    expected = model(scenes[0]).depth
    model.set_backend(backend)
    assert relative_error(model(scenes[0]).depth, expected) < 0.05


@pytest.mark.slow
def test_static_scales_are_of_the_inputs_that_are_left(make_bare: Make, scenes: Tensor) -> None:
    """Largest values of inputs that are divided by the factors, and then rotated."""
    model = make_bare()
    recipe = replace(load_recipe("int8_static_rotated"), smoothing="search", special_tokens="shared", observer="minmax")
    smoothed = quantize(make_bare(), recipe, calibration=scenes)
    folds = folds_between(model, smoothed)
    plain = quantize(make_bare(), replace(recipe, smoothing=0), calibration=scenes)
    name = "aggregator.global_blocks.1.attn.qkv"
    layer, other = smoothed.get_submodule(name), plain.get_submodule(name)
    assert isinstance(layer, Int8Linear)
    assert isinstance(other, Int8Linear)
    left = inputs_of(model, name, scenes) / folds[name].columns.float()
    largest = rotate(left, layer.rotation).abs().max()
    assert layer.input_scale.item() * 127 == pytest.approx(largest.item(), rel=5e-3)
    assert layer.input_scale.item() != pytest.approx(other.input_scale.item(), rel=2e-2)
    both = replace(recipe, smoothing="weights")
    by_weights = quantize(make_bare(), both, calibration=scenes)
    left = inputs_of(model, name, scenes) / folds_between(model, by_weights)[name].columns.float()
    largest = rotate(left, layer.rotation).abs().max().item()
    assert by_weights.get_submodule(name).input_scale.item() * 127 == pytest.approx(largest, rel=5e-3)


class Foreign(nn.Module):
    """A network of this family's names that is none of this package's classes."""

    def __init__(self, source: VGGTInt8) -> None:
        super().__init__()
        self.aggregator, self.camera_head = source.aggregator, source.camera_head

    def forward(self, images: Tensor) -> Tensor:
        last = len(self.aggregator.frame_blocks) - 1
        return self.camera_head(self.aggregator(images, [last])[last][:, :, 0])[-1]


def test_a_foreign_module(make_bare: Make, scenes: Tensor) -> None:
    foreign = Foreign(make_bare())
    batches = [scene[None] for scene in scenes]
    with torch.no_grad():
        expected = foreign(batches[0])
    quantize(foreign, "int8_smooth_rotated", "reference", calibration=batches)
    with torch.no_grad():
        assert relative_error(foreign(batches[0]), expected) < 0.1
    assert folds_between(Foreign(make_bare()), foreign).keys() > {"aggregator.frame_blocks.0.attn.qkv"}


def test_without_images_or_with_images_for_nothing(make_bare: Make, bare_checkpoint: Path, scenes: Tensor) -> None:
    model = make_bare()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RecipeError, match=r"int8_smooth.*smooths by what inputs show.*calibration="):
        quantize(model, "int8_smooth")
    with pytest.raises(RecipeError, match=r"int8_smooth_rotated.*calibration="):
        VGGTInt8.from_pretrained(bare_checkpoint, recipe="int8_smooth_rotated")
    with pytest.raises(RecipeError, match="smooths by what inputs show"):
        quantize_module(model, "int8_smooth")
    with pytest.raises(RecipeError, match="needs no images"):
        quantize(model, "int8_rotated", calibration=scenes)
    with pytest.raises(CalibrationError, match="NaN"):
        quantize(model, "int8_smooth", calibration=torch.full_like(scenes, float("nan")))
    with pytest.raises(RecipeError, match="'per_channel' smooths by itself"):
        replace(load_recipe("int8_static"), smoothing=0.5, observer="per_channel")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("strengths", [{"a": 2}, {"a": "much"}, [0.5]])
def test_damaged_facts_are_refused(rotated: VGGTInt8, strengths: Any) -> None:
    facts = rotated.config.quantization_config
    damaged = {**facts.calibration, "smoothing": strengths}
    with pytest.raises(CheckpointError, match="its smoothing is"):
        VGGTInt8QuantizationConfig(recipe=facts.recipe, calibration=damaged)
