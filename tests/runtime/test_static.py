"""Static scales in the fused network, with special tokens that have their own: it is the plain one, in every part."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.codes import apart_by_codes
from tests.runtime.test_network import FP32, errors, images_of
from vggt_int8 import VGGTInt8, quantize
from vggt_int8.model.call import Call
from vggt_int8.model.layers import Block
from vggt_int8.quant import Int8Linear
from vggt_int8.quant.backends import BackendError
from vggt_int8.runtime import Runtime
from vggt_int8.runtime.memory import PLANS
from vggt_int8.runtime.network import run_network
from vggt_int8.runtime.token_scales import EVERY_TOKEN, TokenScales

HEADS = ("camera", "depth", "point")
WAYS = {
    "one scale": {"input_scale": 0.03},
    "special tokens": {"input_scale": (0.01, 0.03), "special_tokens": 5},
    "rotated": {"input_scale": 0.02, "rotation": 16},
    "special tokens, rotated": {"input_scale": (0.01, 0.02), "special_tokens": 5, "rotation": 16},
}
Make = Callable[[str], VGGTInt8]


@pytest.fixture
def make_static(make_tiny: Callable[[], VGGTInt8]) -> Make:
    """Builds the golden network with static scales in all blocks of encoder and aggregator."""

    def make(way: str) -> VGGTInt8:
        model = make_tiny().requires_grad_(False)
        blocks = [module for module in model.aggregator.modules() if isinstance(module, Block)]
        for block in blocks:
            for name, linear in list(block.named_modules()):
                if isinstance(linear, nn.Linear):
                    block.set_submodule(name, Int8Linear.from_linear(linear, "static", **WAYS[way]))
        return model

    return make


slow = pytest.mark.slow


@pytest.mark.parametrize("way", [pytest.param(way, marks=[slow] * (way != "special tokens, rotated")) for way in WAYS])
@pytest.mark.parametrize("sizes", [(1, 1, 42, 56), (2, 3, 42, 56), (1, 2, 14, 42)])
def test_the_fused_network_is_the_network(
    make_static: Make, make_tiny: Callable[[], VGGTInt8], way: str, sizes: tuple[int, int, int, int]
) -> None:
    model, exact = make_static(way), make_tiny().requires_grad_(False)
    plain = [lambda x, m=m: dict(m(x, heads=HEADS).items()) for m in (exact, model)]
    limits = apart_by_codes(*plain, [images_of(*sizes, seed) for seed in range(2)])
    images = images_of(*sizes)
    found = errors(dict(Runtime(model)(images, heads=HEADS).items()), plain[1](images))
    assert all(found[name] < FP32 + limits[name] for name in found), (found, limits)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [pytest.param("int8_static", marks=slow), "int8_static_rotated"])
def test_the_recipes_run_fused_unasked(make_tiny: Callable[[], VGGTInt8], recipe: str) -> None:
    model, exact = make_tiny(), make_tiny().requires_grad_(False)
    quantize(model, recipe, "native", calibration=[images_of(1, 16)[0], images_of(1, 16, seed=1)[0]])
    images = images_of(2, 3, seed=2)
    got = dict(model(images, heads=HEADS).items())
    assert (model.runtime_report().mode, model.runtime_report().reason) == ("fused", "on the CPU")
    model.set_runtime("off")
    plain = [lambda x, m=m: dict(m(x, heads=HEADS).items()) for m in (exact, model)]
    limits, found = apart_by_codes(*plain, [images]), errors(got, plain[1](images))
    assert all(found[name] < FP32 + limits[name] for name in found), (found, limits)


def test_special_tokens_have_the_first_scale(make_static: Make) -> None:
    """A scale that is far too large loses what it is for, and it is used for that alone."""
    images, model = images_of(1, 2), make_static("special tokens")
    want = Runtime(model)(images)
    for layer in model.modules():
        if isinstance(layer, Int8Linear):
            layer.input_scale[0] = 1e3
    runtime = Runtime(model)
    lost = errors(dict(runtime(images).items()), dict(want.items()))
    assert lost["pose_enc"] > 0.01, "the camera token has codes of zeros alone"
    model.set_runtime("off")
    plain = errors(dict(runtime(images).items()), dict(model(images).items()))
    assert max(plain.values()) < 0.1 * lost["pose_enc"], (plain, lost)


@pytest.mark.parametrize("rows", [3, 17, 40, 1000])
def test_a_plan_changes_nothing_but_the_parts(make_static: Make, rows: int) -> None:
    """17 tokens a frame: rows of a part of a frame, of one frame, of two and of all."""
    model = make_static("special tokens")
    asked = Call.of(model, images_of(2, 3), None, HEADS)
    want = run_network(model, asked, PLANS[0])
    found = errors(run_network(model, asked, replace(PLANS[0], rows=rows, frames=2)), want)
    assert max(found.values()) < FP32, found


def test_scales_of_tokens() -> None:
    block = Block(16, 2, 4.0, qk_norm=False)
    block.attn.qkv = Int8Linear.from_linear(block.attn.qkv, "static", input_scale=(0.5, 2.0), special_tokens=2)
    block.mlp.fc1 = Int8Linear.from_linear(block.mlp.fc1, "static", input_scale=(0.25, 1.0), special_tokens=3)
    block.mlp.fc2 = Int8Linear.from_linear(block.mlp.fc2, "static", input_scale=3.0)
    block.attn.proj = Int8Linear.from_linear(block.attn.proj)
    scales = TokenScales([block], 5)
    assert scales.of(block.attn.qkv).tolist() == [0.5, 0.5, 2.0, 2.0, 2.0]
    assert scales.of(block.mlp.fc1, slice(2, 4)).tolist() == [0.25, 1.0]
    assert scales.of(block.mlp.fc2, slice(2, 4)).tolist() == [3.0]
    assert scales.of(block.attn.proj) is None
    parts = [(range(*rows.indices(15)), tokens) for rows, tokens in scales.parts(15, 10)]
    assert parts == [(range(5), EVERY_TOKEN), (range(5, 15), EVERY_TOKEN)]
    tokens = [list(range(5))[part] for _, part in scales.parts(10, 3)]
    assert tokens == [[0, 1], [2, 3, 4]] * 2
    assert [rows for rows, _ in TokenScales([], 5).parts(15, 10)] == [slice(0, 7), slice(7, 15)]


def test_scales_are_read_in_every_call(make_static: Make) -> None:
    model, images = make_static("special tokens"), images_of(1, 2)
    runtime = Runtime(model)
    before = runtime(images).depth
    for layer in model.modules():
        if isinstance(layer, Int8Linear):
            layer.input_scale.mul_(2)
    assert not torch.equal(runtime(images).depth, before)


def test_special_tokens_elsewhere_are_refused(make_static: Make) -> None:
    """The fused camera head sees one token a frame and knows of no others."""
    model = make_static("one scale")
    head: Tensor = model.camera_head.trunk[0].attn.qkv
    model.camera_head.trunk[0].attn.qkv = Int8Linear.from_linear(head, "static", **WAYS["special tokens"])
    model.set_runtime("on")
    with pytest.raises(BackendError, match=r"camera_head\.trunk\.0\.attn\.qkv has a static scale for special tokens"):
        model(images_of(1, 2))
