"""The fused network against the plain one: recipes, dtypes, sizes, heads, plans; and what must not change."""

import copy
import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.codes import apart_by_codes
from tests.runtime.conftest import RECIPES, Make, TrackerCalls
from vggt_int8 import VGGT, VGGTInt8
from vggt_int8.difference import relative_error
from vggt_int8.model import call
from vggt_int8.model.call import Call
from vggt_int8.model.vggt import VGGTOutput
from vggt_int8.quant.backends import BackendError
from vggt_int8.runtime import Runtime
from vggt_int8.runtime.memory import PLANS, Plan
from vggt_int8.runtime.network import run_network
from vggt_int8.runtime.runtime import Mode

TRACKS = ("track", "vis", "conf")
# Relative, of results in fp32 without codes. The reference code in fp32 is within 5e-7 of its fp64 results on this very
# network (7e-7 on another CPU), so two ways to compute them are 1e-6 apart; the rest is for other orders of sums.
FP32 = 2e-5
Images = tuple[int, int, int, int]


def images_of(batch: int, frames: int, height: int = 42, width: int = 56, seed: int = 0) -> Tensor:
    return torch.rand(batch, frames, 3, height, width, generator=torch.Generator().manual_seed(frames + seed))


def errors(got: Mapping[str, Tensor], want: Mapping[str, Tensor]) -> dict[str, float]:
    assert got.keys() == want.keys()
    for name in want:
        assert got[name].dtype == torch.float32
        assert got[name].shape == want[name].shape
    return {name: relative_error(got[name], want[name]) for name in want}


def results(output: Mapping[str, Tensor], calls: TrackerCalls) -> dict[str, Tensor]:
    """The last output, with the feature maps that its tracker got in place of the tracks."""
    found = {name: output[name] for name in output.keys() if name not in TRACKS}  # noqa: SIM118  (not a mapping)
    return found | ({"maps": calls[-1][0]} if "track" in output else {})


@pytest.fixture(scope="module")
def exact_results() -> dict[tuple[Images, int], dict[str, Tensor]]:
    """Of the network without codes, by sizes and seed of the images. Several recipes are compared with them."""
    return {}


# Every recipe with several scenes. Of the other sizes each with one of codes, which take four more calls for the limit.
ONE, SCENES, SQUARE, LOW = (1, 1, 42, 56), (2, 3, 42, 56), (1, 2, 56, 56), (1, 4, 14, 42)
SIZES = {
    "none": (ONE, SCENES, SQUARE, LOW),
    "fp16": (SCENES, LOW),
    "int8_weight_only": (ONE, SCENES, SQUARE, LOW),
    "int8_dynamic": (ONE, SCENES, LOW),
    "int8_rotated": (SCENES, SQUARE),
}


@pytest.mark.parametrize(("recipe", "sizes"), [(recipe, sizes) for recipe, all_of in SIZES.items() for sizes in all_of])
def test_the_fused_network_is_the_network(
    make_quantized: Make,
    tracker_calls: TrackerCalls,
    exact_results: dict[tuple[Images, int], dict[str, Tensor]],
    recipe: str,
    sizes: Images,
) -> None:
    model, images = make_quantized(recipe), images_of(*sizes)
    # The tracker is the network's own; its maps are made for every recipe, and of every size large enough for it.
    tracked = sizes[0] == 2 or (recipe == "int8_weight_only" and sizes[2] > 14)
    points = torch.tensor([[3.0, 4.0], [13.0, 9.0]]).expand(len(images), 2, 2) if tracked else None
    want = results(model(images, points), tracker_calls)
    output = Runtime(model)(images, points)
    found, limits = errors(results(output, tracker_calls), want), dict.fromkeys(want, FP32)
    if points is not None:
        assert_tracks_are_the_trackers(model, output, tracker_calls)
    if recipe in ("int8_dynamic", "int8_rotated"):

        def without_codes(seed: int) -> dict[str, Tensor]:
            if (sizes, seed) not in exact_results:
                output = make_quantized("none")(images_of(*sizes, seed), points)
                exact_results[sizes, seed] = results(output, tracker_calls)
            return exact_results[sizes, seed]

        def with_codes(seed: int) -> dict[str, Tensor]:
            return results(model(images_of(*sizes, seed), points), tracker_calls) if seed else want

        codes = apart_by_codes(without_codes, with_codes, range(4))
        limits = {name: FP32 + codes[name] for name in want}
    assert all(found[name] < limits[name] for name in want), (found, limits)


def assert_tracks_are_the_trackers(model: VGGTInt8, output: VGGTOutput, calls: TrackerCalls) -> None:
    """Those of the last call, to the bit: it is the same code on the same maps, in the same parts."""
    tracks, visibility, confidence = model.track_head.tracker(*calls[-1])
    for name, value in zip(TRACKS, (tracks[-1], visibility, confidence), strict=True):
        assert torch.equal(output[name], value), name


@pytest.mark.parametrize(
    ("recipe", "dtype"), [*((recipe, torch.float16) for recipe in RECIPES), ("int8_rotated", torch.bfloat16)]
)
def test_half_precision_loses_no_more_than_in_the_plain_network(
    make_quantized: Make, recipe: str, dtype: torch.dtype
) -> None:
    images = images_of(2, 3)
    exact = make_quantized(recipe)(images)
    model = make_quantized(recipe, dtype)
    plain, fused = errors(model(images), exact), errors(Runtime(model)(images), exact)
    assert all(fused[name] < 1.5 * plain[name] + torch.finfo(dtype).eps for name in plain), (plain, fused)


def test_recipes_differ_from_fp32(make_quantized: Make) -> None:
    """So the INT8 layers really run."""
    images = images_of(1, 2)
    want = make_quantized("none")(images).depth
    for recipe in ("int8_weight_only", "int8_dynamic"):
        assert 1e-4 < relative_error(Runtime(make_quantized(recipe))(images).depth, want) < 0.05


@pytest.mark.parametrize("heads", [("camera",), ("depth",), ("point", "camera"), ("track",)])
def test_selected_heads(make_quantized: Make, tracker_calls: TrackerCalls, heads: tuple[str, ...]) -> None:
    model, images = make_quantized("int8_weight_only"), images_of(1, 2)
    points = torch.tensor([[3.0, 4.0]]) if "track" in heads else None
    want = results(model(images, points, heads), tracker_calls)
    output = Runtime(model)(images, points, heads)
    found = errors(results(output, tracker_calls), want)
    assert max(found.values()) < FP32, found
    if points is not None:
        assert_tracks_are_the_trackers(model, output, tracker_calls)


def test_a_model_without_some_heads(tiny_sizes: dict[str, object], tiny_weights: dict[str, Tensor]) -> None:
    from vggt_int8 import VGGTConfig

    model = VGGTInt8(VGGTConfig(**{**tiny_sizes, "enable_track": False, "enable_camera": False})).eval()
    model.load_state_dict({name: t for name, t in tiny_weights.items() if not name.startswith(("track", "camera"))})
    with torch.no_grad():
        got = Runtime(model)(images_of(1, 2))
    assert set(got) == {"images", "depth", "depth_conf", "world_points", "world_points_conf"}


def in_parts(plan: Plan) -> Plan:
    return replace(plan, rows=7, frames=2, head_frames=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch", "plans"),
    # The tracker is told of parts, of whichever plan. What `PLANS` differ in besides parts is in the second list, too.
    [
        pytest.param(1, (PLANS[-1], in_parts(PLANS[0])), id="tracked"),
        pytest.param(2, (PLANS[1], PLANS[-1], *map(in_parts, PLANS)), id="all"),
    ],
)
def test_a_plan_changes_nothing_but_the_parts(
    make_quantized: Make, tracker_calls: TrackerCalls, batch: int, plans: tuple[Plan, ...]
) -> None:
    model = make_quantized("int8_weight_only")  # whose results depend on the order of sums alone
    asked = Call.of(model, images_of(batch, 3), torch.tensor([[[3.0, 4.0]]]) if batch == 1 else None)
    want = results(run_network(model, asked, PLANS[0]), tracker_calls)
    for plan in plans:
        got = run_network(model, asked, plan)
        assert batch == 2 or tracker_calls[-1][2] == plan.head_frames
        found = errors(results(got, tracker_calls), want)
        assert max(found.values()) < FP32, (plan, found)


def test_results_are_not_overwritten_by_the_next_call(make_quantized: Make) -> None:
    model = make_quantized("int8_dynamic")
    runtime = Runtime(model)
    first = runtime(images_of(1, 2))
    kept = {name: first[name].clone() for name in first}
    runtime(images_of(1, 2) / 2)
    assert all(torch.equal(first[name], kept[name]) for name in kept)


def test_modes_of_autograd(make_quantized: Make) -> None:
    """Results are plain tensors in every mode, also those made inside inference mode."""
    model, images = make_quantized("int8_dynamic"), images_of(1, 2)
    runtime = Runtime(model)
    want = runtime(images)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            got = runtime(images)
        assert not got.depth.is_inference()
        assert not got.depth.requires_grad
        assert torch.equal(got.depth, want.depth)
    with torch.inference_mode():
        assert torch.equal(runtime(images.clone()).depth, want.depth)


@pytest.mark.slow
def test_the_model_stays_as_it_is(make_quantized: Make, tmp_path: Path) -> None:
    model, images = make_quantized("int8_dynamic"), images_of(1, 2)
    modules, tensors = dict(model.named_modules()), {n: (p.data_ptr(), p.clone()) for n, p in model.named_parameters()}
    model.set_runtime("on")
    model(images)
    assert dict(model.named_modules()) == modules
    for name, parameter in model.named_parameters():
        address, value = tensors[name]
        assert parameter.data_ptr() == address, "nothing is copied or moved"
        assert torch.equal(parameter, value)
    model.save_pretrained(tmp_path)
    again = VGGTInt8.from_pretrained(tmp_path, backend="reference")
    assert again.state_dict().keys() == model.state_dict().keys()
    again.set_runtime("on")
    assert torch.equal(again(images).depth, model(images).depth)


@pytest.mark.slow
def test_a_copy_and_a_pickle_have_a_runtime_of_their_own(make_quantized: Make) -> None:
    model, images = make_quantized("int8_dynamic"), images_of(1, 2)
    model.set_runtime("on", low_vram=True)
    want = model(images).depth
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.runtime is not model.runtime
        assert other.runtime.model is other
        assert other.runtime.low_vram is True
        assert torch.equal(other(images).depth, want)


def test_a_shallow_copy_runs_its_own_modules(make_quantized: Make) -> None:
    model, images = make_quantized("int8_dynamic"), images_of(1, 2)
    model.set_runtime("off", low_vram=True)
    want = model(images, heads=("depth",)).depth
    other = copy.copy(model)
    other._modules = {**model._modules, "depth_head": copy.deepcopy(model.depth_head)}
    other.depth_head.norm.weight.mul_(2)
    assert not torch.equal(other(images, heads=("depth",)).depth, want)
    assert (other.runtime.mode, other.runtime.low_vram) == ("off", True)
    assert torch.equal(model(images, heads=("depth",)).depth, want)


def test_modes_of_the_model(make_quantized: Make) -> None:
    model, images = make_quantized("int8_dynamic"), images_of(1, 2)
    assert model.runtime_report().mode == "none"
    model(images)
    assert (model.runtime_report().mode, model.runtime_report().plan) == ("plain", None)
    assert "native backend" in model.runtime_report().reason
    model.set_runtime("on")
    model(images)
    assert model.runtime_report().mode == "fused"
    model.set_backend("native")
    model.set_runtime("auto")
    model(images)
    assert (model.runtime_report().mode, model.runtime_report().reason) == ("fused", "on the CPU")
    model.set_runtime("off")
    model(images)
    assert model.runtime_report().reason == "set_runtime('off')"
    with pytest.raises(ValueError, match="must be one of auto, on, off; got 'fast'"):
        model.set_runtime("fast")
    for low_vram in ("yes", 1, 0, 1.0):
        with pytest.raises(ValueError, match=f"low_vram must be True, False or 'auto', got {low_vram!r}"):
            model.set_runtime("on", low_vram=low_vram)


def test_finiteness_is_checked_outside(make_quantized: Make) -> None:
    model, images = make_quantized("int8_dynamic"), images_of(1, 2)
    model.set_runtime("on")
    images[0, 1, 0, 3, 3] = float("nan")
    with pytest.raises(FloatingPointError, match="input images hold NaN"):
        model(images)
    model.aggregator.frame_blocks[1].ls1.gamma.data[0] = float("inf")
    with pytest.raises(FloatingPointError, match=r"frame_blocks\.1\.ls1"):
        model(images_of(1, 2))


@pytest.mark.parametrize(("mode", "check_finite"), [("auto", True), ("on", True), ("off", True), ("on", False)])
def test_a_call_is_checked_once(
    make_quantized: Make, monkeypatch: pytest.MonkeyPatch, mode: Mode, check_finite: bool
) -> None:
    model = make_quantized("int8_dynamic")
    asked = (images_of(1, 1), torch.tensor([[3.0, 4.0]]), ("track",))
    model.set_runtime(mode)
    calls = []
    checks = ("checked_images", "_checked_heads", "_checked_query_points")
    for name, check in ((name, getattr(call, name)) for name in checks):
        monkeypatch.setattr(call, name, lambda *a, name=name, check=check: calls.append(name) or check(*a))
    model(*asked, check_finite=check_finite)
    assert calls == list(checks)
    if mode == "auto":
        Runtime(model)(*asked)
        VGGT.forward(model, *asked)
        assert calls == 3 * list(checks)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.rand(2, 3, 40, 56),), ValueError, "multiples of the patch"),
        ((torch.rand(2, 3, 42, 56), None, ("depht",)), ValueError, "unknown head"),
        ((torch.rand(2, 3, 42, 56), torch.rand(1, 2, 3)), ValueError, "query_points"),
        ((torch.rand(2, 3, 42, 56), None, None, 0), ValueError, "frames_chunk_size"),
    ],
)
def test_bad_input(make_quantized: Make, arguments: tuple[object, ...], error: type, message: str) -> None:
    model = make_quantized("none")
    with pytest.raises(error, match=message):
        Runtime(model)(*arguments)
    with pytest.raises(error, match=message):
        model(*arguments)


def test_llm_int8_is_refused(make_tiny: object) -> None:
    from vggt_int8 import quantize

    model = quantize(make_tiny(), "llm_int8", backend="reference").requires_grad_(False)
    with pytest.raises(BackendError, match="outlier columns"):
        Runtime(model)(images_of(1, 1))
