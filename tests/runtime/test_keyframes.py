"""Key frames in the fused network: what the plain one computes, in every part and kind of layer."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.codes import apart_by_codes
from tests.runtime.conftest import Make
from tests.runtime.test_network import FP32, errors, images_of
from vggt_int8 import global_attention
from vggt_int8.model.call import Call
from vggt_int8.pretrained import quantize
from vggt_int8.quant.plan import RecipeError
from vggt_int8.recipe import Recipe
from vggt_int8.runtime import Runtime
from vggt_int8.runtime.memory import PLANS
from vggt_int8.runtime.network import run_network

MIXED = ["frames", "keyframes", "exact", "keyframes"]


ONE, THREE, BY_LAYER = (1, "keyframes", 1), (2, "keyframes", 3), (2, MIXED, 2)
CASES = {
    "none": (ONE, THREE, BY_LAYER),
    "fp16": (THREE,),
    "int8_weight_only": (ONE, THREE, BY_LAYER),
    "int8_dynamic": (ONE, BY_LAYER),  # codes take eight more calls for the limit
    "int8_rotated": (THREE,),
}


@pytest.mark.parametrize(
    ("recipe", "batch", "how", "count"), [(recipe, *case) for recipe, cases in CASES.items() for case in cases]
)
def test_the_fused_network_is_the_network(make_quantized: Make, recipe: str, batch: int, how: Any, count: int) -> None:
    model, images = make_quantized(recipe), images_of(batch, 5)
    keywords = {"global_attention": how, "keyframes": count}
    want = dict(model(images, **keywords).items())
    runtime = Runtime(model)
    found, limits = errors(dict(runtime(images, **keywords).items()), want), dict.fromkeys(want, FP32)
    if recipe in ("int8_dynamic", "int8_rotated"):
        plain = [lambda x, m=m: dict(m(x, **keywords).items()) for m in (make_quantized("none"), model)]
        codes = apart_by_codes(*plain, [images_of(batch, 5, seed=seed) for seed in range(4)])
        limits = {name: FP32 + codes[name] for name in want}
    assert all(found[name] < limits[name] for name in want), (found, limits)
    assert runtime.report().attention == Call.of(model, images, **keywords).attention


@pytest.mark.slow
def test_a_plan_changes_nothing_but_the_parts(make_quantized: Make) -> None:
    """Parts of one scene, and of whole scenes."""
    model = make_quantized("int8_weight_only")
    call = Call.of(model, images_of(3, 5), global_attention="keyframes", keyframes=2)
    want = run_network(model, call, PLANS[0])
    for frames, parts in ((1, 1), (1, 4), (2, 4), (3, 1), (5, 4)):
        small = replace(PLANS[0], rows=7, frames=frames, scene_frames=parts * frames, head_frames=2)
        found = errors(run_network(model, call, small), want)
        assert max(found.values()) < FP32, found


def test_as_many_key_frames_as_frames_change_no_bit(make_quantized: Make) -> None:
    model, images = make_quantized("int8_dynamic"), images_of(2, 3)
    runtime = Runtime(model)
    want, got = runtime(images), runtime(images, global_attention="keyframes", keyframes=3)
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert str(runtime.report().attention) == "exact"


def test_auto_is_what_it_says_it_chose(make_quantized: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(global_attention, "AUTO_FRAMES", 4)
    model, images = make_quantized("none"), images_of(1, 4)
    runtime = Runtime(model)
    for frames, same, said in ((3, "exact", "exact (auto: 3 frames;"), (4, "keyframes", "keyframes (K = 2) (auto: 4")):
        got = runtime(images[:, :frames], global_attention="auto", keyframes=2)
        assert str(runtime.report().attention).startswith(said)
        keywords = {"keyframes": 2} if same == "keyframes" else {}
        want = runtime(images[:, :frames], global_attention=same, **keywords)
        assert all(torch.equal(got[name], want[name]) for name in want)


def test_a_recipe_chooses_for_calls_that_do_not_say_it(make_quantized: Make) -> None:
    model, images = make_quantized("none"), images_of(1, 4)
    quantize(model, Recipe("mine", global_attention="keyframes", keyframes=2))
    runtime = Runtime(model)
    by_recipe = runtime(images)
    assert str(runtime.report().attention) == "keyframes (K = 2)"
    said = runtime(images, global_attention="keyframes", keyframes=2)
    assert all(torch.equal(by_recipe[name], said[name]) for name in said)
    runtime(images, keyframes=3)
    assert str(runtime.report().attention) == "keyframes (K = 3)"
    runtime(images, global_attention="exact")
    assert str(runtime.report().attention) == "exact"


def test_a_recipe_that_the_network_cannot_have_is_refused(make_quantized: Make) -> None:
    with pytest.raises(RecipeError, match="2 words, but the network has 4 global blocks"):
        quantize(make_quantized("none"), Recipe(global_attention=("exact", "keyframes")))
    with pytest.raises(RecipeError, match="only this package's own networks know"):
        quantize(torch.nn.Sequential(torch.nn.Linear(8, 8)), Recipe(global_attention="keyframes"))
