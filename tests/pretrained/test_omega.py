"""VGGT-Omega in INT8: in place, on the way from a file, saved and loaded again; on the public code's own module."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel

from vggt_int8 import (
    CheckpointError,
    VGGTInt8,
    VGGTOmega,
    VGGTOmegaConfig,
    VGGTOmegaInt8,
    available_recipes,
    load_recipe,
    quantize,
)
from vggt_int8.cli.loading import load_model
from vggt_int8.cli.run import default_points
from vggt_int8.difference import relative_error
from vggt_int8.eval.compare import compare_model_outputs
from vggt_int8.model.omega.constants import KeylessBiasLinear
from vggt_int8.quant import Int8Linear
from vggt_int8.quant.plan import make_plan
from vggt_int8.quant.quantize import replace_module

OMEGA = Path(__file__).parents[1] / "data" / "parity_omega"
IMAGES = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
QKV = "aggregator.frame_blocks.0.attn.qkv"


@pytest.fixture(scope="module")
def config() -> VGGTOmegaConfig:
    return VGGTOmegaConfig(**json.loads((OMEGA / "tiny_omega_config.json").read_text()))


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return load_file(OMEGA / "tiny_omega.safetensors")


@pytest.fixture
def make(config: VGGTOmegaConfig, weights: dict[str, Tensor]) -> Callable[[], VGGTOmega]:
    def build() -> VGGTOmega:
        model = VGGTOmega(config).eval()
        model.load_state_dict(weights)
        return model

    return build


def run(model: nn.Module) -> dict[str, Tensor]:
    """On the network's own modules."""
    if isinstance(model, VGGTOmegaInt8):
        model.set_runtime("off")
    with torch.no_grad():
        return dict(model(IMAGES))


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)


@pytest.mark.slow
def test_in_place_from_a_file_and_loaded_again_is_one_model(
    make: Callable[[], VGGTOmega], config: VGGTOmegaConfig, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save({"model": {f"module.{name}": value for name, value in weights.items()}}, tmp_path / "omega.pt")
    in_place = quantize(make(), "int8_dynamic")
    want = run(in_place)
    streamed = VGGTOmegaInt8.from_pretrained(tmp_path / "omega.pt", recipe="int8_dynamic", config=config).eval()
    assert_same(run(streamed), want)
    streamed.save_pretrained(tmp_path / "int8")
    again = AutoModel.from_pretrained(tmp_path / "int8")
    assert type(again) is VGGTOmegaInt8
    assert_same(run(again), want)
    in_place.save_pretrained(tmp_path / "in_place")
    assert_same(run(VGGTOmegaInt8.from_pretrained(tmp_path / "in_place")), want)
    floats = run(make())
    errors = {name: relative_error(value, floats[name]) for name, value in want.items() if name != "images"}
    assert all(0 < error < 0.1 for error in errors.values()), errors
    with safe_open(tmp_path / "int8" / "model.safetensors", framework="pt") as file:
        assert not any(name.endswith("bias_mask") for name in file.keys())  # noqa: SIM118
        assert file.get_tensor(f"{QKV}.bias").chunk(3)[1].count_nonzero() == 0
    assert weights[f"{QKV}.bias"].chunk(3)[1].count_nonzero() > 0


def test_masks_that_are_not_the_networks_are_refused(
    config: VGGTOmegaConfig, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    name = "camera_head.trunk.2.attn.qkv.bias_mask"
    others = {key: tensor for key, tensor in weights.items() if key != name}
    for mask, problem in (
        ({name: torch.ones_like(weights[name])}, f"{name} is not this network's"),
        ({name: torch.ones(5)}, rf"{name} has shape \[5\], the model needs"),
        ({}, f"the checkpoint lacks {name}"),
    ):
        save_file({**others, **mask}, tmp_path / "omega.safetensors")
        with pytest.raises(CheckpointError, match=problem):
            VGGTOmegaInt8.from_pretrained(tmp_path / "omega.safetensors", recipe="int8_dynamic", config=config)


def test_each_class_names_the_other_for_its_checkpoints(
    config: VGGTOmegaConfig,
    weights: dict[str, Tensor],
    bare_checkpoint: Path,
    bare_weights: dict[str, Tensor],
    tmp_path: Path,
) -> None:
    save_file(weights, tmp_path / "omega.safetensors")
    save_file(bare_weights, tmp_path / "vggt.safetensors")
    config.save_pretrained(tmp_path / "omega")
    for load, source, problem in (
        (VGGTInt8, tmp_path / "omega.safetensors", "holds a VGGT-Omega, not a VGGT: load it with VGGTOmegaInt8"),
        (VGGTOmegaInt8, tmp_path / "vggt.safetensors", "holds a VGGT, not a VGGT-Omega: load it with VGGTInt8"),
        (VGGTInt8, tmp_path / "omega", "model_type is 'vggt_omega', not 'vggt': load it with VGGTOmegaInt8"),
        (VGGTOmegaInt8, bare_checkpoint, "model_type is 'vggt', not 'vggt_omega': load it with VGGTInt8"),
    ):
        with pytest.raises(CheckpointError, match=problem):
            load.from_pretrained(source)


class MaskedLinear(nn.Linear):
    """As the public code has it: a mask that is NaN until weights are loaded, multiplied with the bias."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.register_buffer("bias_mask", torch.full((out_features,), float("nan")))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias * self.bias_mask.to(self.bias.dtype))


class ShiftedLinear(MaskedLinear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class Foreign(nn.Module):
    """The public code's module: the same names, no config, no class of ours around it."""

    def __init__(self, network: VGGTOmega, kind: type[nn.Linear], *, loaded: bool = True) -> None:
        super().__init__()
        for name, child in network.named_children():
            self.add_module(name, child)
        for name, module in list(self.named_modules()):
            if isinstance(module, KeylessBiasLinear):
                masked = kind(module.in_features, module.out_features)
                masked.load_state_dict(module.state_dict() if loaded else {}, strict=False)
                replace_module(self, name, masked)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        tokens = self.aggregator(images[None], [1, 2, 3, 4])
        special = tokens[4][:, :, :17]
        depth, confidence = self.dense_head(tokens, (32, 48), None)
        embedding, _ = self.text_alignment_head(special)
        return {
            "pose_enc": self.camera_head(special),
            "depth": depth,
            "depth_conf": confidence,
            "text_alignment_embedding": embedding,
        }


def test_the_public_codes_own_module(make: Callable[[], VGGTOmega]) -> None:
    """To the last bit what this package's network gives, so the mask counts."""
    want = run(quantize(make(), "int8_dynamic"))
    model = Foreign(make().eval(), MaskedLinear).eval()
    got = run(quantize(model, "int8_dynamic"))
    assert sum(isinstance(module, Int8Linear) for module in model.modules()) > 80
    assert not any(isinstance(module, MaskedLinear) for module in model.modules())
    assert all(torch.equal(got[name], want[name]) for name in got)


@pytest.mark.parametrize(
    ("kind", "loaded", "reason"),
    [(ShiftedLinear, True, "does more than to multiply its bias"), (MaskedLinear, False, "bias_mask .* holds NaN")],
)
def test_what_is_more_than_a_mask_is_kept(
    make: Callable[[], VGGTOmega], kind: type[nn.Linear], loaded: bool, reason: str
) -> None:
    model = Foreign(make(), kind, loaded=loaded)
    with pytest.warns(UserWarning, match=reason):
        quantize(model, "int8_dynamic")
    assert isinstance(model.get_submodule(QKV), kind)


def test_recipes_decide_the_full_size_layer_by_layer() -> None:
    """Counts of the map hold, and the INT8 checkpoint without the text head takes at most 1.18 GB."""
    with torch.device("meta"):
        model = VGGTOmegaInt8(VGGTOmegaConfig(enable_text=True))
    for name in available_recipes():
        plan = make_plan(model, load_recipe(name))
        int8 = Counter(layer.split(".")[0] for layer, entry in plan.items() if entry.scheme is not None)
        want = {"aggregator": 288, "camera_head": 17, "dense_head": 29, "text_alignment_head": 17}
        assert int8 == ({} if name == "fp16" else want), name
    plan, size = make_plan(model, load_recipe("int8_dynamic")), 0
    for name, module in model.named_modules():
        int8_layer = name in plan and plan[name].scheme is not None
        own = list(module.named_parameters(recurse=False)) + list(module.named_buffers(recurse=False))
        for key, tensor in own:
            if not name.startswith("text_alignment_head.") and not (int8_layer and key == "bias_mask"):
                size += tensor.numel() * (1 if int8_layer and key == "weight" else 2)
                size += 4 * tensor.shape[0] if int8_layer and key == "weight" else 0
    assert 1.1e9 < size <= 1.18e9


@pytest.mark.slow
def test_commands_load_and_compare_it(make: Callable[[], VGGTOmega], tmp_path: Path) -> None:
    quantize(make(), "int8_dynamic").save_pretrained(tmp_path)
    model = load_model(str(tmp_path), device="cpu")
    assert type(model) is VGGTOmegaInt8
    default = default_points(model)
    assert default == "depth"
    compared = compare_model_outputs(make(), model, IMAGES)
    assert compared["depth"]["mae"] > 0


@pytest.mark.slow
def test_factors_are_folded_into_the_public_codes_own_module(make: Callable[[], VGGTOmega]) -> None:
    floats, got = run(make()), run(quantize(Foreign(make(), MaskedLinear).eval(), "int8_rotated"))
    assert all(0 < relative_error(value, floats[name]) < 0.1 for name, value in got.items())


def test_special_tokens_of_static_recipes_are_those_of_each_part(make: Callable[[], VGGTOmega]) -> None:
    """A class token and four others in the encoder; a camera token and the registers in the aggregator, whose register
    layers (1 and 3) see these alone: one scale is enough.
    """
    plan = make_plan(make(), load_recipe("int8_static_rotated"))
    found = {name: entry.scheme.special_tokens for name, entry in plan.items() if entry.scheme}
    for name, tokens in found.items():
        part, layer = name.rpartition("blocks.")[0], name.partition("blocks.")[2][:1]
        want = {"aggregator.patch_embed.": 5, "aggregator.frame_": 17, "aggregator.inter_frame_": 17}.get(part, 0)
        assert tokens == (0 if part == "aggregator.inter_frame_" and layer in "13" else want), name
    assert len(found) > 100


@pytest.mark.exhaustive
@pytest.mark.parametrize("recipe", [name for name in available_recipes() if not load_recipe(name).needs_calibration])
@pytest.mark.parametrize("backend", ["reference", "native", "torchao"])
def test_every_recipe_on_every_backend(make: Callable[[], VGGTOmega], recipe: str, backend: str) -> None:
    if recipe == "fp16" or (recipe == "llm_int8" and backend != "reference"):
        return
    floats, got = run(make()), run(quantize(make(), recipe, backend=backend))
    assert all(0 < relative_error(got[name], floats[name]) < 0.1 for name in got if name != "images")


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "int8_static_rotated" else pytest.mark.exhaustive)
        for name in available_recipes()
        if load_recipe(name).needs_calibration
    ],
)
def test_recipes_that_need_images(make: Callable[[], VGGTOmega], recipe: str) -> None:
    model = quantize(make(), recipe, calibration=IMAGES)
    floats, got = run(make()), run(model)
    assert all(0 < relative_error(got[name], floats[name]) < 0.15 for name in got if name != "images")
