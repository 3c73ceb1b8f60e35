"""Static scales of a layer: one, or one for the special tokens of each frame and one for all other tokens."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.usable import running, skip_unless_usable
from vggt_int8 import RecipeError, VGGTInt8
from vggt_int8.quant import Int8Linear, make_plan
from vggt_int8.recipe import Recipe, Scheme, load_recipe

SPECIAL = 5
BACKENDS = running("static")
OWN = Recipe(
    weights="keep",
    activations="static",
    special_tokens="own",
    groups={"encoder": "static", "global_blocks": "static", "frame_blocks": "static", "camera_head": "static"},
)


def linear(k: int, n: int) -> nn.Linear:
    layer = nn.Linear(k, n)
    layer.weight.data = torch.randn(n, k, generator=torch.Generator().manual_seed(1)) * 0.1
    return layer


def static_layer(k: int = 48, n: int = 24, backend: str = "reference", rotation: int = 0) -> Int8Linear:
    return Int8Linear.from_linear(
        linear(k, n), "static", backend, input_scale=[0.8, 0.02], rotation=rotation, special_tokens=SPECIAL
    )


def expected(layer: Int8Linear, x: Tensor, special: int) -> np.ndarray:
    """By NumPy in float64: x [F, P, K] -> [F, P, N]. The first `special` tokens of each frame have the first scale."""
    scale = np.full((1, x.shape[1], 1), 0.02, dtype=np.float32)
    scale[:, :special] = 0.8
    codes = np.clip(np.rint(x.float().numpy() / scale), -127, 127).astype(np.float64)
    weight = layer.codes.numpy().astype(np.float64) * layer.weight_scale.numpy()
    assert layer.bias is not None
    return (codes * scale) @ weight.T + layer.bias.float().numpy()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("tokens", [1, 3, 5, 6, 17])
def test_special_tokens_of_every_frame_have_their_own_scale(backend: str, dtype: torch.dtype, tokens: int) -> None:
    """On the backends that have static scales; inputs reach beyond both scales, so that codes saturate at -127."""
    skip_unless_usable(backend, Scheme("static"), "cpu")
    layer = static_layer(backend=backend)
    x = torch.randn(3, tokens, 48, generator=torch.Generator().manual_seed(2)).to(dtype) * 2
    x[:, :SPECIAL] *= 60
    assert tokens <= SPECIAL or x[:, SPECIAL:].min() < -128.5 * 0.02
    assert x[:, :SPECIAL].min() < -128.5 * 0.8
    want = torch.from_numpy(expected(layer, x, SPECIAL)).float()
    rounding = {torch.float32: 3e-6, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(layer(x).float(), want, rtol=rounding, atol=rounding * want.abs().max().item())


@pytest.mark.parametrize("backend", BACKENDS)
def test_rotated_inputs_have_static_scales(backend: str) -> None:
    skip_unless_usable(backend, Scheme("static"), "cpu")
    layer = static_layer(backend=backend, rotation=16)
    want = copy.deepcopy(layer)
    want.backend = "reference"
    x = torch.randn(2, 9, 48, generator=torch.Generator().manual_seed(3))
    y = layer(x)
    torch.testing.assert_close(y, want(x), rtol=1e-5, atol=1e-5 * y.abs().max().item())
    assert not torch.equal(y[:, :SPECIAL], layer(x.flip(1))[:, :SPECIAL])


@pytest.mark.parametrize("shape", [(48,), (9, 48), (1, 9, 48), (2, 3, 9, 48), (0, 9, 48), (2, 0, 48)])
def test_tokens_lie_along_the_last_axis_but_one(shape: tuple[int, ...]) -> None:
    layer = static_layer()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    y = layer(x)
    assert y.shape == (*shape[:-1], 24)
    frames = x.reshape(-1, x.shape[-2] if x.ndim > 1 else 1, 48) if x.numel() else x.reshape(0, 1, 48)
    torch.testing.assert_close(
        y.reshape(-1, 24), torch.from_numpy(expected(layer, frames, SPECIAL)).float().reshape(-1, 24)
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_stays_in_its_token(backend: str) -> None:
    skip_unless_usable(backend, Scheme("static"), "cpu")
    layer = static_layer(backend=backend)
    x = torch.ones(2, 9, 48)
    x[0, 2, 7], x[1, 8, 0] = float("nan"), float("-inf")
    finite = layer(x).isfinite().all(dim=-1)
    want = torch.ones(2, 9, dtype=torch.bool)
    want[0, 2] = want[1, 8] = False
    assert torch.equal(finite, want)


def test_stored_scales_and_older_ones() -> None:
    state = static_layer().state_dict()
    assert state["input_scale"].shape == (2,)
    assert state["input_scale"].dtype == torch.float32
    single = Int8Linear.from_linear(linear(48, 24), "static", input_scale=0.25)
    assert single.input_scale is not None
    assert single.input_scale.shape == (1,)
    assert single.special_tokens == 0
    for older in (torch.tensor(0.5), torch.tensor([0.5])):
        single.load_state_dict({**single.state_dict(), "input_scale": older})
        assert single.input_scale.tolist() == [0.5]
    with pytest.raises(RuntimeError, match="input_scale"):
        single.load_state_dict(state)
    with pytest.raises(RuntimeError, match="not positive"):
        static_layer().load_state_dict({**state, "input_scale": torch.tensor([1.0, 0.0])})


@pytest.mark.parametrize("scale", [0.1, [0.1], [0.1, 0.0], [0.1, float("nan")], [0.1, 0.1, 0.1], []])
def test_two_positive_scales_are_needed(scale: float | list[float]) -> None:
    with pytest.raises(ValueError, match="two positive numbers: of special tokens, and of others"):
        Int8Linear.from_linear(linear(8, 8), "static", input_scale=scale, special_tokens=1)


def test_special_tokens_are_for_static_scales() -> None:
    with pytest.raises(RecipeError, match="special_tokens 5 is for static scales, not for activations = 'dynamic'"):
        Scheme("dynamic", special_tokens=5)
    with pytest.raises(RecipeError, match=r"special_tokens is -1; it must be an integer >= 0"):
        Scheme("static", special_tokens=-1)
    with pytest.raises(RecipeError, match="special_tokens = 'own' has no effect: no layer has static scales"):
        Recipe(special_tokens="own")
    with pytest.raises(RecipeError, match="special_tokens is 'some'; choose one of 'own', 'shared'"):
        Recipe(activations="static", special_tokens="some")


def test_the_plan_gives_them_where_layers_see_frames(make_tiny: type[VGGTInt8]) -> None:
    model = make_tiny()
    number = 1 + model.config.num_register_tokens
    plan = {name: layer.scheme for name, layer in make_plan(model, OWN).items() if isinstance(layer.scheme, Scheme)}
    apart = {name for name, scheme in plan.items() if scheme.special_tokens}
    assert {scheme.special_tokens for scheme in plan.values()} == {0, number}
    assert all(".patch_embed.blocks." in n or "frame_blocks" in n or "global_blocks" in n for n in apart)
    assert {n for n, scheme in plan.items() if not scheme.special_tokens} == {n for n in plan if "camera_head" in n}
    shared = make_plan(model, Recipe(weights="keep", groups={"encoder": "static"}))
    assert not any(layer.scheme.special_tokens for layer in shared.values() if isinstance(layer.scheme, Scheme))


def test_the_plan_of_a_checkpoint_needs_no_map(make_tiny: type[VGGTInt8]) -> None:
    """What is stored are patterns that hold the number; recipes without special tokens are stored as before."""
    from vggt_int8.quant.plan import recipe_for

    model = make_tiny()
    stored = recipe_for(model, OWN).to_dict()
    assert Recipe.from_dict(stored) == recipe_for(model, OWN)
    assert make_plan(model, Recipe.from_dict(stored)) == make_plan(model, OWN)
    before = recipe_for(model, load_recipe("int8_dynamic")).to_dict()
    assert "special_tokens" not in before
    assert not any("special_tokens" in rule for rule in before["rules"])


def test_networks_that_join_frames_share_one_scale() -> None:
    """Such as the reference repository's, whose global blocks see [B, S * P, C]: it states no number."""

    class Foreign(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            block = {"attn": nn.ModuleDict({"qkv": nn.Linear(8, 24), "proj": nn.Linear(8, 8)})}
            block["mlp"] = nn.ModuleDict({"fc1": nn.Linear(8, 16), "fc2": nn.Linear(16, 8)})
            blocks = [nn.ModuleList([nn.ModuleDict(block)]) for _ in range(3)]
            self.aggregator = nn.Module()
            self.aggregator.patch_embed = nn.Module()
            self.aggregator.patch_embed.blocks, self.aggregator.frame_blocks, self.aggregator.global_blocks = blocks

    recipe = Recipe(activations="static", special_tokens="own", groups={"encoder": "static"}, include=("aggregator",))
    plan = make_plan(Foreign(), recipe)
    assert {layer.scheme for layer in plan.values()} == {Scheme("static")}


def test_linears_see_frames_in_every_block(make_tiny: type[VGGTInt8], tiny_images: Tensor) -> None:
    """Two scenes of two frames: [F, P, C] in encoder, frame and global blocks alike."""
    model = make_tiny()
    shapes: dict[str, tuple[int, ...]] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            shapes[name] = tuple(args[0].shape[:2])

        return hook

    for name, module in model.aggregator.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(watch(name))
    with torch.no_grad():
        model(torch.stack([tiny_images, tiny_images.flip(0)]), heads=("camera",))
    patches = tiny_images[0, 0].numel() // model.config.patch_size**2
    assert set(shapes.values()) == {(4, patches + 1 + model.config.num_register_tokens)}
    assert any("global_blocks" in name for name in shapes)
