"""Networks with calibrated scales: made in every way, the same whatever the order of images, saved and loaded again."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers.utils import logging

from tests.calibrated import calibration_for
from tests.codes import FACTOR
from tests.states import assert_same_state
from tests.usable import skip_unless_usable
from vggt_int8 import BackendError, CheckpointError, Recipe, RecipeError, VGGTInt8, load_recipe, quantize
from vggt_int8.calibration import CalibrationError
from vggt_int8.difference import relative_error
from vggt_int8.kernels.reference import rotate
from vggt_int8.pretrained.in_place import progress_of
from vggt_int8.pretrained.quantizer import VGGTInt8QuantizationConfig
from vggt_int8.quant import Int8Linear, quantize_module
from vggt_int8.recipe import Scheme
from vggt_int8.recipe.scheme import OBSERVERS

STATIC = ["int8_static", "int8_static_rotated"]
pytestmark = pytest.mark.filterwarnings("ignore:calibrated with")


def scales_of(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: module.input_scale
        for name, module in model.named_modules()
        if isinstance(module, Int8Linear) and module.input_scale is not None
    }


def shuffled(scenes: Tensor) -> Tensor:
    return scenes[[1, 2, 0]].flip(1)


@pytest.mark.parametrize(
    "observer", ["mse", *(pytest.param(kind, marks=pytest.mark.slow) for kind in OBSERVERS if kind != "mse")]
)
def test_the_same_images_in_another_order_give_the_same_bits(
    make_bare: Callable[[], VGGTInt8], scenes: Tensor, static_recipe: Recipe, observer: str
) -> None:
    recipe = replace(static_recipe, observer=observer, calibration_samples=4)
    one, other = (quantize(make_bare(), recipe, calibration=images) for images in (scenes, shuffled(scenes)))
    assert_same_state(one, other)
    assert one.config.quantization_config.to_dict() == other.config.quantization_config.to_dict()
    assert len(set(one.config.quantization_config.calibration["sha256"])) == 4
    seeded = quantize(make_bare(), recipe, calibration=scenes, calibration_seed=3)
    assert (
        seeded.config.quantization_config.calibration["sha256"] != one.config.quantization_config.calibration["sha256"]
    )


def channel_ranges(model: nn.Module, name: str, calls: Tensor) -> Tensor:
    """The largest input of each channel, [K], by a hook of this test's own."""
    seen: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(lambda module, args, output: seen.append(args[0]))
    with torch.no_grad():
        for call in calls:
            model(call)
    handle.remove()
    return torch.cat(seen).abs().flatten(0, -2).amax(dim=0)


@pytest.mark.parametrize("change", [{"observer": "per_channel"}, {"observer": "minmax"}])
def test_ranges_are_those_of_what_is_folded(
    make_bare: Callable[[], VGGTInt8], scenes: Tensor, tiny_images: Tensor, change: dict[str, str]
) -> None:
    """Of the first layer, whose inputs are those of the float network but for what is folded, and fp16's rounding."""
    name = "aggregator.patch_embed.blocks.0.attn.qkv"
    recipe = replace(load_recipe("int8_static"), special_tokens="shared", **change)
    assert recipe.smoothing == "weights", "of all layers, or of those that per_channel does not see"
    before, model = channel_ranges(make_bare(), name, scenes), quantize(make_bare(), recipe, calibration=scenes)
    after = channel_ranges(model, name, scenes)
    assert model.config.quantization_config.calibration["ranges"][name] == pytest.approx([after.max().item()], rel=2e-3)
    assert (after / before).max() > 1.02 * (after / before).min(), "something was folded"
    if recipe.observer == "per_channel":
        assert before.max() > 1.1 * before.min()
        torch.testing.assert_close(after, after.max().expand_as(after), rtol=2e-3, atol=0)
    plain = make_bare()(tiny_images).depth
    assert relative_error(model(tiny_images).depth, plain) < 0.1


@pytest.mark.parametrize("recipe", STATIC)
def test_scales_are_the_largest_inputs_of_each_kind_of_token(
    make_bare: Callable[[], VGGTInt8], scenes: Tensor, recipe: str
) -> None:
    """Against hooks of this test's own; with minmax, so that there is a number to compare with."""
    model = make_bare()
    name, special = "aggregator.global_blocks.0.attn.proj", model.special_tokens["aggregator.global_blocks"]
    seen: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(lambda module, args, output: seen.append(args[0]))
    chosen = replace(load_recipe(recipe), observer="minmax")
    static = quantize(model, chosen, calibration=scenes)
    handle.remove()
    layer = static.get_submodule(name)
    assert isinstance(layer, Int8Linear)
    assert layer.input_scale is not None
    inputs = torch.cat([rotate(x, layer.rotation) if layer.rotation else x for x in seen])
    assert bool(layer.rotation) == (recipe == "int8_static_rotated")
    want = [inputs[:, :special].abs().max().item() / 127, inputs[:, special:].abs().max().item() / 127]
    assert layer.input_scale.tolist() == pytest.approx(want, rel=1e-6)
    facts = static.config.quantization_config.calibration
    assert facts["ranges"][name] == pytest.approx([127 * scale for scale in want], rel=1e-6)
    assert {n: s.numel() for n, s in scales_of(static).items()} == {n: len(r) for n, r in facts["ranges"].items()}
    assert all(n.startswith("aggregator.") for n in facts["ranges"])
    assert (facts["images"], facts["calls"], facts["observer"], facts["seed"]) == (6, 3, "minmax", 0)


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "dtype"), [(STATIC[0], torch.float32), (STATIC[1], torch.float16)])
def test_ways_in_agree_and_a_reload_is_exact(
    tmp_path: Path,
    bare_checkpoint: Path,
    make_bare: Callable[[], VGGTInt8],
    scenes: Tensor,
    tiny_images: Tensor,
    recipe: str,
    dtype: torch.dtype,
) -> None:
    model = VGGTInt8.from_pretrained(bare_checkpoint, recipe=recipe, calibration=scenes, dtype=dtype)
    in_memory = quantize(make_bare(), recipe, calibration=list(scenes)).to(dtype)
    assert_same_state(model, in_memory)
    assert next(p for p in model.parameters() if p.is_floating_point()).dtype == dtype
    model.save_pretrained(tmp_path / "int8")
    for again in (
        VGGTInt8.from_pretrained(tmp_path / "int8", dtype=dtype),
        AutoModel.from_pretrained(tmp_path / "int8", dtype=dtype),
    ):
        assert_same_state(again, model)
        assert again.config.quantization_config.calibration == model.config.quantization_config.calibration
        for key, value in model(tiny_images).items():
            assert torch.equal(again(tiny_images)[key], value), key
    again.save_pretrained(tmp_path / "again")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "int8" / file).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", STATIC)
def test_one_checkpoint_on_every_backend(
    tmp_path: Path, make_bare: Callable[[], VGGTInt8], scenes: Tensor, tiny_images: Tensor, recipe: str
) -> None:
    plain = make_bare()(tiny_images).depth
    quantize(make_bare(), recipe, calibration=scenes).save_pretrained(tmp_path / "int8")
    outputs = {}
    for backend in ("reference", "native", "torchao"):
        skip_unless_usable(backend, Scheme("static"), "cpu")
        model = VGGTInt8.from_pretrained(tmp_path / "int8", backend=backend)
        used = {row.backend for row in model.quantization_report() if row.scheme.startswith("W8A8 static")}
        assert used == {backend}
        outputs[backend] = model(tiny_images).depth
    lost = relative_error(outputs["reference"], plain)
    assert 1e-4 < lost < 0.2
    assert all(relative_error(y, outputs["reference"]) < FACTOR * lost for y in outputs.values())
    with pytest.raises(BackendError, match=r"bitsandbytes.* cannot run W8A8 static"):
        VGGTInt8.from_pretrained(tmp_path / "int8", backend="bitsandbytes")


def test_images_of_one_colour_show_no_ranges(make_bare: Callable[[], VGGTInt8], static_recipe: Recipe) -> None:
    """Black is not zero behind the normalisation of images, so that layers' inputs have ranges, but not those of
    pictures."""
    model, scenes = make_bare(), torch.rand(2, 3, 42, 56)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    grey = torch.full_like(scenes, 0.5) + torch.linspace(0, 0.01, 56)
    grey[1] += 0.01  # another image: one that comes twice is seen once
    with pytest.raises(CalibrationError, match="all 3 calibration images are of one colour, such as black"):
        quantize(model, static_recipe, calibration=[torch.zeros(1, 3, 42, 56), grey])
    with (
        pytest.warns(UserWarning, match="calibrated with 1 image, all that there are"),
        pytest.raises(CalibrationError, match="the only calibration image is of one colour"),
    ):
        quantize(model, static_recipe, calibration=torch.ones(1, 3, 42, 56))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.warns(UserWarning, match="1 of 3 calibration images are of one colour.* leave them out"):
        quantize(model, static_recipe, calibration=[torch.zeros(1, 3, 42, 56), scenes])


def test_channels_and_measured_smoothing_contradict_each_other(static_recipe: Recipe) -> None:
    with pytest.raises(RecipeError, match="'per_channel' smooths by itself: leave smoothing 'search' out"):
        replace(static_recipe, observer="per_channel", smoothing="search")


def test_what_cannot_be_calibrated_leaves_the_model_as_it_was(
    make_tiny: Callable[[], VGGTInt8], scenes: Tensor, static_recipe: Recipe
) -> None:
    model = make_tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    bad = scenes.clone()
    bad[0, 0, 0, 0, 0] = math.nan
    with_track = replace(static_recipe, groups={**static_recipe.groups, "track_head": "static"})
    for recipe, images, kind, message in (
        (static_recipe, None, RecipeError, r"computes with static scales, .* pass calibration= .*--calibration"),
        (
            load_recipe("int8_rotated"),
            scenes,
            RecipeError,
            "'int8_rotated' needs no images",
        ),
        (static_recipe, [], CalibrationError, "no image was given"),
        (static_recipe, bad, CalibrationError, "image 0 of scene 0 of the calibration images holds NaN"),
        (with_track, scenes, CalibrationError, r"track head runs with query points .* track_head = 'dynamic'"),
    ):
        with pytest.raises(kind, match=message):
            quantize(model, recipe, calibration=images)
        assert getattr(model.config, "quantization_config", None) is None
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(RecipeError, match=r"needs static scales of \d+ layers, such as 'aggregator.*calibration="):
        quantize_module(model, static_recipe)
    assert not any(isinstance(module, Int8Linear) for module in model.modules())


def test_from_pretrained_asks_for_images_before_it_loads(
    bare_checkpoint: Path, bare_int8: Path, tmp_path: Path, scenes: Tensor
) -> None:
    with pytest.raises(RecipeError, match="computes with static scales, which are found on images"):
        VGGTInt8.from_pretrained(tmp_path / "nowhere", recipe="int8_static")
    with pytest.raises(FileNotFoundError, match="no such image"):
        VGGTInt8.from_pretrained(tmp_path / "nowhere", recipe="int8_static", calibration=tmp_path / "no_images")
    with pytest.raises(RecipeError, match="calibration belongs to a recipe that needs it"):
        VGGTInt8.from_pretrained(bare_checkpoint, calibration=scenes)
    with pytest.raises(ValueError, match="calibration_seed is 18446744073709551616; it must be an integer of 64 bits"):
        VGGTInt8.from_pretrained(bare_checkpoint, recipe="int8_static", calibration=scenes, calibration_seed=1 << 64)
    with pytest.raises(RecipeError, match="'int8_dynamic' needs no images"):
        VGGTInt8.from_pretrained(bare_checkpoint, recipe="int8_dynamic", calibration=scenes)
    with pytest.raises(CheckpointError, match="is quantized already"):
        VGGTInt8.from_pretrained(bare_int8, recipe="int8_static", calibration=scenes)
    config = VGGTInt8QuantizationConfig(recipe=load_recipe("int8_static").to_dict())
    with pytest.raises(RecipeError, match="'int8_static' needs images"):  # past our own way in
        PreTrainedModel.from_pretrained.__func__(VGGTInt8, bare_checkpoint, quantization_config=config)


@pytest.mark.slow
def test_folders_of_files(bare_checkpoint: Path, folders: list[Path]) -> None:
    model = VGGTInt8.from_pretrained(bare_checkpoint, recipe="int8_static", calibration=folders)
    facts = model.config.quantization_config.calibration
    assert (facts["images"], facts["calls"]) == (5, 2)
    again = VGGTInt8.from_pretrained(bare_checkpoint, recipe="int8_static", calibration=folders[::-1])
    assert_same_state(again, model)


def test_with_loading_info(bare_checkpoint: Path, scenes: Tensor) -> None:
    model, info = VGGTInt8.from_pretrained(  # type: ignore[misc]
        bare_checkpoint, recipe="int8_static", calibration=scenes, output_loading_info=True
    )
    assert scales_of(model)
    assert not info["missing_keys"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"calibration": 3}, "does not say how the model was calibrated: it is 3"),
        ({"calibration": {}}, "its observer is None"),
        ({"images": "many"}, "its images is 'many'"),
        ({"images": True}, "its images is True"),
        ({"sha256": [3]}, "its sha256 is no list of texts"),
        ({"ranges": {"a": []}}, r"its range of 'a' is \[\]"),
        ({"ranges": {"a": [1.0, math.inf]}}, r"its range of 'a' is \[1.0, inf\]"),
        ({"ranges": {"a": 1.0}}, "its range of 'a' is 1.0"),
    ],
)
def test_a_damaged_config(change: dict[str, Any], message: str) -> None:
    facts = {"observer": "minmax", "seed": 0, "images": 1, "calls": 1, "sha256": ["00"], "ranges": {"a": [1.0]}}
    recipe = load_recipe("int8_static").to_dict()
    VGGTInt8QuantizationConfig(recipe=recipe, calibration={**facts, "of a later version": 1})
    with pytest.raises(CheckpointError, match=message):
        VGGTInt8QuantizationConfig(recipe=recipe, calibration=change.get("calibration", {**facts, **change}))


def test_any_module(static_recipe: Recipe) -> None:
    """One that is no VGGT is called with each tensor; a module under two names is watched once, and has one scale."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(16, 16)
            self.same = self.first
            self.last = nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(self.same(self.first(x)))
            return y

    torch.manual_seed(0)
    model, calls = Net(), [torch.rand(5, 16) - 0.5, 3 * torch.rand(7, 16)]
    with torch.no_grad():
        inputs = torch.cat([rows for x in calls for rows in (x, model.first(x))])
    recipe = Recipe(activations="static", include=("first", "same", "last"))
    quantize(model, recipe, calibration=calls)
    assert model.first is model.same
    assert scales_of(model)["first"].item() == pytest.approx(inputs.abs().max().item() / 127)
    assert model(calls[0]).shape == (5, 4)
    with pytest.raises(TypeError, match="is calibrated with tensors"):
        quantize(Net(), recipe, calibration="photos/")


def test_the_recipes_of_tests_are_calibrated(scenes: Tensor) -> None:
    assert calibration_for("int8_static", scenes) == {"calibration": scenes}
    assert calibration_for("int8_dynamic", scenes) == calibration_for(None, scenes) == {}


def test_progress_that_is_off_stops_nothing() -> None:
    logging.disable_progress_bar()
    try:
        with progress_of(None) as shown:
            shown(1, 2)
            shown(2, 2)
    finally:
        logging.enable_progress_bar()
