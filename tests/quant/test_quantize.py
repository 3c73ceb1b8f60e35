"""`quantize()` in place: on foreign modules with the reference repository's names, and on `VGGTInt8`."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vggt_int8 import BackendError, Recipe, RecipeError, VGGTInt8, load_recipe, quantize
from vggt_int8.difference import relative_error
from vggt_int8.quant import Int8Conv2d, Int8ConvTranspose2d, Int8Linear
from vggt_int8.recipe import Rule, Scheme

# A stand-in for the reference repository's model: its module names, its nn.MultiheadAttention, little else.


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Attention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x)[:, None].chunk(3, dim=-1)
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v)[:, 0])


class Block(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = (
            nn.LayerNorm(dim),
            Attention(dim),
            nn.LayerNorm(dim),
            Mlp(dim, 4 * dim, dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Encoder(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, dim, 14, 14)
        self.blocks = nn.ModuleList(Block(dim) for _ in range(2))


class Aggregator(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.patch_embed = Encoder(dim)
        self.frame_blocks = nn.ModuleList(Block(dim) for _ in range(2))
        self.global_blocks = nn.ModuleList(Block(dim) for _ in range(2))
        self.register_buffer("image_mean", torch.full((1, 3, 1, 1), 0.5))

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed.patch_embed.proj(images - self.image_mean).flatten(2).transpose(1, 2)
        for block in (*self.patch_embed.blocks, *self.frame_blocks, *self.global_blocks):
            x = block(x)
        return x


class CameraHead(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.embed_pose = nn.Linear(9, dim)
        self.poseLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 3 * dim))
        self.trunk = nn.Sequential(Block(dim))
        self.pose_branch = Mlp(dim, dim // 2, 9)

    def forward(self, x: Tensor) -> Tensor:
        scale, _, gate = self.poseLN_modulation(self.embed_pose(x[..., :9])).chunk(3, dim=-1)
        return self.pose_branch(self.trunk(gate * x + scale))


class AttnBlock(nn.Module):
    def __init__(self, dim: int, name: str) -> None:
        super().__init__()
        self.name = name
        setattr(self, name, nn.MultiheadAttention(dim, 2, batch_first=True))
        self.norm1, self.mlp = nn.LayerNorm(dim), Mlp(dim, 2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + getattr(self, self.name)(x, x, x)[0]
        return x + self.mlp(self.norm1(x))


class UpdateFormer(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.input_transform, self.flow_head = nn.Linear(dim, dim), nn.Linear(dim, 7)
        self.time_blocks = nn.ModuleList([AttnBlock(dim, "attn")])
        self.space_virtual2point_blocks = nn.ModuleList([AttnBlock(dim, "cross_attn")])

    def forward(self, x: Tensor) -> Tensor:
        x = self.input_transform(x)
        for block in (*self.time_blocks, *self.space_virtual2point_blocks):
            x = block(x)
        return self.flow_head(x)


class TrackHead(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.feature_extractor = dpt(dim)
        del self.feature_extractor.scratch.output_conv2
        self.tracker = nn.Module()
        self.tracker.corr_mlp = Mlp(dim, dim, dim)
        self.tracker.updateformer = UpdateFormer(dim)
        self.tracker.ffeat_updater = nn.Sequential(nn.Linear(dim, dim), nn.GELU())
        self.tracker.vis_predictor = nn.Sequential(nn.Linear(dim, 1))
        self.tracker.conf_predictor = nn.Sequential(nn.Linear(dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        tracker = self.tracker
        return tracker.updateformer(tracker.ffeat_updater(tracker.corr_mlp(x)))


def dpt(dim: int) -> nn.Module:
    head = nn.Module()
    head.projects = nn.ModuleList([nn.Conv2d(dim, 8, 1)])
    head.resize_layers = nn.ModuleList([nn.ConvTranspose2d(8, 8, 2, 2), nn.Identity()])
    head.scratch = nn.Module()
    head.scratch.layer1_rn = nn.Conv2d(8, 8, 3, padding=1, bias=False)
    head.scratch.output_conv2 = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    return head


class Foreign(nn.Module):
    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.aggregator = Aggregator(dim)
        self.camera_head, self.track_head = CameraHead(dim), TrackHead(dim)
        self.depth_head, self.point_head = dpt(dim), dpt(dim)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        tokens = self.aggregator(images)
        grid = tokens.transpose(1, 2).unflatten(2, (images.shape[-2] // 14, -1))
        out = {"pose_enc": self.camera_head(tokens), "track": self.track_head(tokens)}
        for name, head in (("depth", self.depth_head), ("world_points", self.point_head)):
            x = head.resize_layers[0](head.projects[0](grid))
            out[name] = head.scratch.output_conv2(head.scratch.layer1_rn(x))
        return out


@pytest.fixture
def foreign() -> Foreign:
    torch.manual_seed(0)
    return Foreign().eval()


IMAGES = torch.rand(2, 3, 42, 56, generator=torch.Generator().manual_seed(0))
KEPT = {
    "aggregator.patch_embed.patch_embed.proj",
    "camera_head.embed_pose",
    "camera_head.pose_branch.fc2",
    "track_head.tracker.updateformer.time_blocks.0.attn.out_proj",
    "track_head.tracker.updateformer.space_virtual2point_blocks.0.cross_attn.out_proj",
    "track_head.tracker.updateformer.flow_head",
    "track_head.tracker.vis_predictor.0",
    "track_head.tracker.conf_predictor.0",
    "depth_head.scratch.output_conv2.2",
    "point_head.scratch.output_conv2.2",
}


@pytest.mark.parametrize("name", ["int8_dynamic", "int8_weight_only", "llm_int8"])
def test_a_foreign_model_with_the_reference_names(foreign: Foreign, name: str) -> None:
    with torch.no_grad():
        want = foreign(IMAGES)
    before = {key: tensor.clone() for key, tensor in foreign.state_dict().items()}
    assert quantize(foreign, recipe=name) is foreign
    with torch.no_grad():
        got = foreign(IMAGES)
    floats = {n for n, m in foreign.named_modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)}
    assert floats == KEPT
    int8 = {n: m for n, m in foreign.named_modules() if isinstance(m, Int8Linear | Int8Conv2d | Int8ConvTranspose2d)}
    for key, tensor in foreign.state_dict().items():
        module = key.rpartition(".")[0]
        if module not in int8:
            folded = load_recipe(name).smoothing and module.endswith((".norm1", ".norm2", "camera_head.trunk_norm"))
            assert folded or torch.equal(tensor, before[key]), f"{key} must stay as it was"
            assert tensor.dtype == torch.float32
    schemes = {n: m.scheme for n, m in int8.items() if isinstance(m, Int8Linear)}
    camera_head = Scheme("none", rotation=256 if name == "int8_weight_only" else 0)
    for module, scheme in schemes.items():
        assert scheme == (camera_head if module.startswith("camera_head.") else load_recipe(name).scheme), module
    for key in want:
        error = relative_error(got[key], want[key])
        assert 0 < error < 0.03, key


def test_half_precision_models_stay_half_precision(foreign: Foreign) -> None:
    foreign.to(torch.bfloat16)
    with torch.no_grad():
        want = foreign(IMAGES.bfloat16())
        got = quantize(foreign)(IMAGES.bfloat16())
    for key in want:
        assert got[key].dtype == torch.bfloat16
        assert relative_error(got[key], want[key]) < 0.06
    assert foreign.aggregator.frame_blocks[0].norm1.weight.dtype == torch.bfloat16
    assert foreign.aggregator.frame_blocks[0].attn.qkv.weight_scale.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_foreign_model_under_autocast(foreign: Foreign, dtype: torch.dtype) -> None:
    """As the reference's README runs it: fp32 weights, half-precision autocast."""
    with torch.no_grad(), torch.autocast("cpu", dtype):
        want = foreign(IMAGES)
        got = quantize(foreign)(IMAGES)
    for key in want:
        assert relative_error(got[key], want[key]) < 0.06


@pytest.mark.parametrize("name", ["int8_dynamic", "int8_weight_only", "llm_int8"])
def test_a_foreign_model_outside_no_grad(foreign: Foreign, name: str) -> None:
    """What is kept still has gradients, as the reference's own model does in evaluation."""
    quantize(foreign, recipe=name)
    outputs = foreign(IMAGES)
    with torch.no_grad():
        for key, value in foreign(IMAGES).items():
            assert torch.equal(outputs[key], value), key
    sum(value.sum() for value in outputs.values()).backward()
    assert foreign.aggregator.patch_embed.patch_embed.proj.weight.grad.abs().max() > 0


def test_twice(foreign: Foreign) -> None:
    quantize(foreign)
    for recipe in ("int8_dynamic", "fp16"):
        with pytest.raises(RecipeError, match="quantized already"):
            quantize(foreign, recipe=recipe)


def assert_untouched(model: nn.Module, before: dict[str, Tensor]) -> None:
    assert not any(isinstance(module, Int8Linear | Int8Conv2d) for module in model.modules())
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[key], rtol=0, atol=0, equal_nan=True)


def spoil(path: str, value: float) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        model.get_parameter(path).data.view(-1)[5] = value

    return change


# What is wrong with the model or the request -> the message. Nothing may have changed then.
LAST_LINEAR = "track_head.tracker.ffeat_updater.0"
WRONG: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (spoil(f"{LAST_LINEAR}.weight", float("nan")), {}, ValueError, rf"{LAST_LINEAR}: the weight holds NaN or inf"),
    (spoil(f"{LAST_LINEAR}.weight", float("inf")), {}, ValueError, rf"{LAST_LINEAR}: the weight holds NaN or inf"),
    (spoil(f"{LAST_LINEAR}.bias", 1e5), {}, ValueError, rf"{LAST_LINEAR}: the bias holds 100000, which fp16"),
    (
        spoil("point_head.projects.0.weight", float("nan")),
        {},
        ValueError,
        "point_head.projects.0: the weight holds NaN",
    ),
    (
        None,
        {"recipe": replace(load_recipe("int8_dynamic"), activations="static")},
        RecipeError,
        "static scales",
    ),
    (None, {"recipe": replace(load_recipe("int8_dynamic"), rules=(Rule("nothing"),))}, RecipeError, "decides no layer"),
    (None, {"recipe": "int8"}, RecipeError, "there is no recipe 'int8'"),
    (None, {"backend": "cutlass"}, BackendError, "there is no backend 'cutlass'"),
    (None, {"recipe": "int8_weight_only", "backend": "bitsandbytes"}, BackendError, "cannot run W8A16"),
    (None, {"recipe": "llm_int8", "backend": "torchao"}, BackendError, r"cannot run LLM\.int8\(\)"),
    (None, {"recipe": "llm_int8", "backend": "native"}, BackendError, r"cannot run LLM\.int8\(\)"),
    (None, {"recipe": "fp16", "backend": "native"}, BackendError, "no layer for backend 'native'"),
]


@pytest.mark.parametrize(("change", "arguments", "kind", "message"), WRONG)
def test_an_error_leaves_the_model_as_it_was(
    foreign: Foreign, change: Any, arguments: dict[str, Any], kind: type[Exception], message: str
) -> None:
    if change:
        change(foreign)
    before = copy.deepcopy(foreign.state_dict())
    with pytest.raises(kind, match=message):
        quantize(foreign, **arguments)
    assert_untouched(foreign, before)


def test_a_bare_layer_cannot_be_replaced_in_place() -> None:
    with pytest.raises(RecipeError, match="the model is itself a Linear"):
        quantize(nn.Linear(4, 4), Recipe())


def test_include_and_exclude_on_a_plain_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 8))
    x = torch.randn(16, 32)
    want = model(x).detach()
    quantize(model, Recipe(activations="dynamic", exclude=("4",)))
    assert [type(layer).__name__ for layer in model] == ["Int8Linear", "GELU", "Int8Linear", "GELU", "Linear"]
    got = model(x).detach()
    assert 0 < relative_error(got, want) < 0.02
    assert model[4].weight.requires_grad, "what is not replaced can still be trained"


def test_an_own_recipe_file(foreign: Foreign, tmp_path: Any) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("activations = 'none'\n[[rules]]\nmatch = 'aggregator\\.frame_blocks\\.[01]\\.mlp\\.fc1'\n")
    quantize(foreign, recipe=path)
    assert sum(isinstance(m, Int8Linear) for m in foreign.modules()) == 2


@pytest.mark.parametrize(
    ("options", "untouched"),
    [
        ({"exclude": (r"camera_head\..*",)}, "camera_head"),
        ({"exclude": (r"(depth|point|track)_head\..*",)}, "track_head"),
        ({"exclude": (r"aggregator\..*\.attn\..*",)}, "aggregator.frame_blocks.0.attn"),
    ],
)
def test_exclude_on_vggt(make_tiny: Callable[[], VGGTInt8], options: dict[str, Any], untouched: str) -> None:
    model = quantize(make_tiny(), replace(load_recipe("int8_dynamic"), **options))
    int8 = [name for name, module in model.named_modules() if isinstance(module, Int8Linear | Int8Conv2d)]
    assert int8
    assert not any(name.startswith(untouched) for name in int8)


def test_include_without_rules_on_vggt(make_tiny: Callable[[], VGGTInt8], tiny_images: Tensor) -> None:
    model = make_tiny()
    want = model(tiny_images)
    quantize(model, Recipe(activations="none", include=(r"aggregator\..*\.mlp\.fc[12]",)))
    assert sum(isinstance(m, Int8Linear) for m in model.modules()) == 20
    got = model(tiny_images)
    assert 0 < relative_error(got.depth, want.depth) < 0.02


def test_a_config_of_two_models_stays_that_of_the_other(make_tiny: Callable[[], VGGTInt8]) -> None:
    model = make_tiny()
    other = VGGTInt8(model.config)
    assert quantize(model, "int8_dynamic").config.quantization_config is not None
    assert getattr(other.config, "quantization_config", None) is None


def test_a_kept_parameter_that_fp16_cannot_hold(make_tiny: Callable[[], VGGTInt8]) -> None:
    for value, message in ((float("nan"), "the weight holds NaN or inf"), (1e6, "the weight holds 1e.06, which fp16")):
        model = make_tiny()
        model.aggregator.frame_blocks[1].norm1.weight.data[3] = value
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(ValueError, match=rf"aggregator\.frame_blocks\.1\.norm1\.weight: {message}"):
            quantize(model)
        assert_untouched(model, before)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fp16", "int8_dynamic", "int8_weight_only", "llm_int8"])
def test_vggt_stays_close_to_float(
    make_tiny: Callable[[], VGGTInt8], tiny_images: Tensor, tiny_points: Tensor, name: str
) -> None:
    model = make_tiny()
    want = model(tiny_images, query_points=tiny_points)
    got = quantize(model, name)(tiny_images, query_points=tiny_points)
    limit = 1e-3 if name == "fp16" else 0.08
    for key in ("pose_enc", "depth", "world_points", "depth_conf", "world_points_conf", "track"):
        error = relative_error(got[key], want[key])
        assert error < limit, key
        assert name == "fp16" or error > 1e-5, f"{key}: INT8 must be active"
    assert not any(p.requires_grad for p in model.parameters())
