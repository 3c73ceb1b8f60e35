"""Plans and their estimates at VGGT-1B's size, and what happens when memory runs out."""

import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from tests.runtime.conftest import Make
from vggt_int8 import VGGTConfig
from vggt_int8.runtime import Runtime, memory, runtime
from vggt_int8.runtime.memory import GRAPH_TOKENS, PLANS, SMALLEST, Shape, choose_plan, cpu_plan, frames_that_fit, parts

GIB = 2**30
CONFIG = VGGTConfig()
WEIGHTS = 1.28e9  # int8_dynamic without the track head
HEADS = ("camera", "depth", "point")


def shape(frames: int) -> Shape:
    return Shape(1, frames, 392, 518, HEADS, 2)


def image_bytes(frames: int) -> int:
    return frames * 3 * 392 * 518 * 4


@pytest.mark.parametrize(("frames", "gib"), [(1, 1.8), (10, 2.3), (32, 3.2), (100, 5.5)])
def test_the_fastest_plan_is_estimated_within_the_targets(frames: int, gib: float) -> None:
    peak = WEIGHTS + image_bytes(frames) + shape(frames).peak_bytes(CONFIG, PLANS[0])
    if frames <= GRAPH_TOKENS // 1041:  # a graph has its own input, and outputs that are copied out
        peak += image_bytes(frames) + frames * 6 * 4 * 392 * 518
    assert peak <= gib * GIB


def test_a_thousand_frames_in_24_gigabytes_keep_their_maps_on_the_gpu() -> None:
    plan = choose_plan(shape(1000), CONFIG, int(24e9 - WEIGHTS - image_bytes(1000) - 0.6e9))
    assert plan.tokens_on_host
    assert not plan.outputs_on_host


def test_less_memory_smaller_plans() -> None:
    for call, least in ((shape(100), 1.5), (replace(shape(100), keyframes=40), 0.9)):
        peaks = [call.peak_bytes(CONFIG, plan) for plan in PLANS]
        assert peaks == sorted(peaks, reverse=True)
        assert [choose_plan(call, CONFIG, peak) for peak in peaks] == [PLANS[peaks.index(peak)] for peak in peaks]
        assert peaks[-1] < least * GIB


def test_on_a_cpu_parts_are_small() -> None:
    plan = cpu_plan(shape(100), CONFIG)
    assert (plan.frames, plan.rows, plan.head_frames) == (1, 2044, 1)
    assert plan == cpu_plan(shape(1), CONFIG), "which the number of frames has nothing to do with"
    small = VGGTConfig(img_size=112, patch_size=8, embed_dim=192, mlp_ratio=2.0, dpt_features=64)
    many = cpu_plan(Shape(1, 8, 112, 112, HEADS, 4), small)
    assert many.frames >= 8
    assert many.rows > 1000
    assert many.head_frames > 1


def test_frames_that_fit() -> None:
    for free in (4, 8, 22):
        frames = frames_that_fit(shape(5), CONFIG, free * GIB)
        for count, fits in ((frames, True), (frames + 1, False)):
            assert (image_bytes(count) + shape(count).peak_bytes(CONFIG, SMALLEST) <= free * GIB) == fits
    assert frames_that_fit(shape(5), CONFIG, 1 << 20) == 0


class Exhausted:
    """Stands in for the network: runs out of memory under the first `failures` plans."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
        self.failures, self.plans = failures, []
        self.run = runtime.run_network
        monkeypatch.setattr(runtime, "run_network", self)
        monkeypatch.setattr(memory, "free_gpu_bytes", lambda _: 3 * GIB)
        monkeypatch.setattr(runtime, "cpu_plan", lambda *_: PLANS[0])
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)

    def __call__(self, model: object, call: object, plan: object) -> dict[str, Tensor]:
        self.plans.append(plan)
        if len(self.plans) <= self.failures:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.run(model, call, plan)


def test_out_of_memory_is_caught_and_learned_from(
    make_quantized: Make, tiny_images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_quantized("int8_dynamic")
    want = Runtime(model)(tiny_images)
    network = Exhausted(monkeypatch, failures=1)
    fused = Runtime(model)
    got = fused(tiny_images)
    assert network.plans == [PLANS[0], PLANS[1]]
    assert fused.report().plan == PLANS[1]
    torch.testing.assert_close(got.depth, want.depth, rtol=1e-4, atol=1e-4)
    fused(tiny_images)
    assert network.plans[2:] == [PLANS[1]], "the same call ran into it again"
    fused(tiny_images[:1])
    assert network.plans[3:] == [PLANS[0]], "another call has learned nothing"
    monkeypatch.setattr(memory, "free_gpu_bytes", lambda _: 4 * GIB)
    fused(tiny_images)
    assert network.plans[4:] == [PLANS[0]], "more memory is free now"


def test_what_is_tried_after_a_plan() -> None:
    for i, plan in enumerate(PLANS):
        assert memory.plans_after(plan) == tuple(dict.fromkeys((*PLANS[i + 1 : i + 2], *PLANS[i + 1 :][-1:])))
    assert memory.plans_after(PLANS[0].graphed()) == memory.plans_after(PLANS[0]) == (PLANS[1], SMALLEST)
    assert memory.plans_after(SMALLEST) == ()


@pytest.mark.parametrize(
    ("low_vram", "plans"), [("auto", [PLANS[0], PLANS[1], SMALLEST]), (True, [SMALLEST]), (False, PLANS[:1])]
)
def test_then_it_is_reported(
    make_quantized: Make, tiny_images: Tensor, monkeypatch: pytest.MonkeyPatch, low_vram: object, plans: list[object]
) -> None:
    network = Exhausted(monkeypatch, failures=3)
    model = make_quantized("int8_dynamic")
    fused = Runtime(model, low_vram)
    with pytest.raises(torch.OutOfMemoryError, match=r"1 x 2 frames of 42 x 56 pixels .* 3\.0 GiB are free: about"):
        fused(tiny_images)
    assert network.plans == list(plans)


def test_nothing_is_moved_off_a_cpu(make_quantized: Make, tiny_images: Tensor) -> None:
    model = make_quantized("int8_dynamic")
    fused = Runtime(model, low_vram=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fused(tiny_images)
    assert fused.report().plan == SMALLEST


@pytest.mark.parametrize(
    ("is_cuda", "heads", "plan", "low_vram", "told"),
    [
        (True, HEADS, SMALLEST, "auto", True),
        (True, ("camera",), SMALLEST, "auto", False),
        (True, HEADS, PLANS[2], "auto", False),
        (True, HEADS, SMALLEST, True, False),
        (False, HEADS, SMALLEST, "auto", False),
    ],
)
def test_maps_that_are_moved_unasked(
    is_cuda: bool, heads: tuple[str, ...], plan: memory.Plan, low_vram: runtime.LowVram, told: bool
) -> None:
    images = SimpleNamespace(is_cuda=is_cuda)
    assert runtime._moves_unasked(images, replace(shape(2), heads=heads), plan, low_vram) is told


def test_frames_chunk_size_is_an_upper_bound(make_quantized: Make, tiny_images: Tensor) -> None:
    model = make_quantized("none")
    fused = Runtime(model)
    fused(tiny_images, frames_chunk_size=None)
    planned = fused.report().plan.head_frames
    for given, used in ((1, 1), (planned - 1, planned - 1), (planned + 1, planned)):
        fused(tiny_images, frames_chunk_size=given)
        assert fused.report().plan.head_frames == used


def test_the_report_reads_well(make_quantized: Make, tiny_images: Tensor) -> None:
    model = make_quantized("none")
    fused = Runtime(model)
    assert str(fused.report()) == "none (no call yet)"
    fused(tiny_images)
    wanted = "fused (on the CPU)\nglobal attention: exact, by PyTorch flash_attention\nPlan(frames="
    assert str(fused.report()).startswith(wanted)


def test_the_terms_of_the_estimate() -> None:
    """The numbers that the module's text states."""
    per_token = 1024 * 2
    one = shape(100)
    assert one.tokens(CONFIG) == 104100
    blocks = one.peak_bytes(CONFIG, PLANS[0]) - memory.MARGIN
    assert blocks >= 104100 * per_token * (5 + 6)
    on_host = one.peak_bytes(CONFIG, PLANS[4]) - memory.MARGIN
    assert on_host == pytest.approx(104100 * per_token * 5, rel=0.3)


@pytest.mark.parametrize(
    ("frames", "plan", "of_x", "mlp_rows"),
    [
        (100, PLANS[0], 6 + 5, 0),  # x, q k v and the output of attention, beside six of eight halves that are kept
        (100, PLANS[2], 4 + 5, 0),
        (100, PLANS[4], 5, 0),
        (100, SMALLEST, 5, 0),
        (1, PLANS[0].graphed(), 6 + 2, 1041),  # few tokens: the MLP takes more than attention
    ],
)
def test_bytes_per_token_are_those_of_the_text(frames: int, plan: memory.Plan, of_x: int, mlp_rows: int) -> None:
    """In units of a token of x (2 KB), and 13 KB for a row of the MLP."""
    call = shape(frames)
    blocks = call._block_bytes(CONFIG, plan)
    assert blocks == frames * 1041 * 2048 * of_x + mlp_rows * 13 * 1024
    assert call.peak_bytes(CONFIG, plan) == memory.MARGIN + max(blocks, call._head_bytes(CONFIG, plan))


def test_key_frames_take_what_the_text_says() -> None:
    """Two tensors of x beside the halves that are kept, and of the frames at work q and the output, or q k v and it."""
    for keyframes, at_work in ((40, 3 * 40 + 2 * 128), (0, 2 * 128), (999, 3 * 999 + 2 * 128)):
        blocks = replace(shape(1000), keyframes=keyframes)._block_bytes(CONFIG, PLANS[0])
        assert blocks == (1000 * (6 + 2) + at_work) * 1041 * 2048


@pytest.mark.parametrize(("frames", "gib"), [(100, 4.0), (200, 6.0), (500, 12.0), (1000, 22.0)])
def test_key_frames_are_estimated_within_the_targets(frames: int, gib: float) -> None:
    peak = WEIGHTS + image_bytes(frames) + replace(shape(frames), keyframes=40).peak_bytes(CONFIG, PLANS[0])
    assert peak <= gib * GIB


@pytest.mark.parametrize(("frames", "gigabytes", "on_host"), [(100, 4, 0), (300, 8, 1), (1000, 24, 1), (5000, 80, 4)])
def test_key_frames_fit_with_their_maps_on_the_gpu(frames: int, gigabytes: int, on_host: int) -> None:
    free = int(gigabytes * 1e9 - WEIGHTS - image_bytes(frames))
    plan = choose_plan(replace(shape(frames), keyframes=40), CONFIG, free)
    assert plan.layers_on_host <= on_host
    assert not plan.outputs_on_host


def test_a_plan_fits_to_the_byte() -> None:
    peak = shape(100).peak_bytes(CONFIG, PLANS[0])
    assert choose_plan(shape(100), CONFIG, peak) == PLANS[0]
    assert choose_plan(shape(100), CONFIG, peak - 1) == PLANS[1]


def test_maps_of_two_heads_at_once_are_counted_up_to_two_frames() -> None:
    """82 MB for a frame of one head, as the module's text has it."""
    pixels, a_head = 392 * 518, {}
    for frames in (2, 3):
        both, one = (replace(shape(frames), heads=heads) for heads in (("depth", "point"), ("point",)))
        outputs = frames * pixels * 4 * 2  # of depth
        made = [call._head_bytes(CONFIG, PLANS[0].graphed()) for call in (both, one)]
        a_head[frames] = made[0] - made[1] - outputs
    assert a_head == {2: pytest.approx(2 * 82e6, rel=0.005), 3: 0}


def test_bytes_of_tracks_are_those_of_the_text() -> None:
    """A point takes 12 KB a frame or, while maps are sampled, 7 KB and 81 KB for each of eight frames at work."""
    tracks = replace(shape(10), heads=("depth", "track"))
    alone = replace(tracks, heads=("depth",))._head_bytes(CONFIG, PLANS[0].graphed())
    maps = tracks._head_bytes(CONFIG, PLANS[0]) - alone
    assert maps == 3 * 10 * (392 * 518 // 4) * 128 * 2
    for frames, largest in ((100, 100 * 6804 + 8 * 82_944), (1000, 1000 * 12_252)):
        assert replace(tracks, frames=frames, points=50)._tracker_bytes(CONFIG, PLANS[0]) == 50 * largest


def test_parts_are_of_nearly_equal_length() -> None:
    for total, at_most in ((1, 1), (10, 8), (11, 8), (10, 3), (100, 32), (7, 100)):
        slices = list(parts(total, at_most))
        lengths = [s.stop - s.start for s in slices]
        assert [i for s in slices for i in range(total)[s]] == list(range(total))
        assert max(lengths) <= at_most
        assert max(lengths) - min(lengths) <= 1
        assert len(slices) == -(-total // at_most)
        assert memory.longest_part(total, at_most) == max(lengths)
