"""The runtime on a GPU, at VGGT-1B's shapes: the same numbers, graphs, memory within the targets, no leaks."""

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import sdpa_kernel

from vggt_int8 import VGGT, VGGTConfig, VGGTInt8, quantize
from vggt_int8.difference import relative_error
from vggt_int8.runtime import Runtime, branches, memory, runtime
from vggt_int8.runtime.attention import CUDNN, FLASH, attention
from vggt_int8.runtime.convolution import call_conv
from vggt_int8.runtime.graphs import CAPACITY
from vggt_int8.runtime.memory import PLANS, SMALLEST

pytestmark = pytest.mark.gpu
GIB = 2**30
SIZE = (392, 518)
STATIC = ("int8_static", "int8_static_rotated")
FIELDS = ("pose_enc", "depth", "depth_conf", "world_points", "world_points_conf")


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """VGGT-1B without tracks, random, drawn so that every branch contributes; fp32 on the CPU."""
    with torch.device("cuda"):
        torch.manual_seed(0)
        model = VGGT(VGGTConfig(enable_track=False))
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            nn.init.uniform_(parameter, 0.05, 0.2)
        elif name.endswith(("_token", "_tokens")):
            nn.init.normal_(parameter, std=0.3)
    return {name: tensor.cpu() for name, tensor in model.state_dict().items()}


def build(weights: dict[str, Tensor], recipe: str, backend: str) -> VGGTInt8:
    with torch.device("meta"):
        model = VGGTInt8(VGGTConfig(enable_track=False))
    model.load_state_dict(weights, assign=True)
    model = model.eval().requires_grad_(False)
    for child in model.children():
        child.half()
    scenes = [images_of(8, (140, 294), seed=100 + i) for i in range(4)] if "static" in recipe else None
    quantize(model.cuda(), recipe, backend, calibration=scenes)
    release()
    return model


@pytest.fixture(scope="module")
def int8(weights: dict[str, Tensor]) -> VGGTInt8:
    return build(weights, "int8_dynamic", "native")


@pytest.fixture(autouse=True)
def clean(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    if "int8" in request.fixturenames:
        request.getfixturevalue("int8").set_runtime("auto")
    release()


def release() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def images_of(frames: int, size: tuple[int, int] = SIZE, seed: int = 0) -> Tensor:
    return torch.rand(frames, 3, *size, generator=torch.Generator().manual_seed(seed)).cuda()


@pytest.mark.parametrize("recipe", ["fp16", "int8_weight_only", "int8_dynamic", "int8_rotated", *STATIC])
def test_the_fused_network_loses_no_more_than_the_plain_one(weights: dict[str, Tensor], recipe: str) -> None:
    """Against the same quantized tensors computed in fp32 by the definition, over several inputs of each shape.

    A pose has nine numbers a frame: the error of a single call is a matter of luck.
    """
    model = build(weights, recipe, "auto" if recipe == "fp16" else "reference")
    worse = []
    for frames, size in ((1, SIZE), (2, (518, 518)), (3, (140, 294))):
        inputs = [images_of(frames, size, seed=seed) for seed in range(8)]
        fused, plain = [Runtime(model)(x) for x in inputs], [model(x) for x in inputs]
        model.float()
        exact = [model(x) for x in inputs]
        model.half()
        for name in FIELDS:
            found, allowed, wanted = (
                torch.stack([output[name] for output in outputs]) for outputs in (fused, plain, exact)
            )
            error, limit = relative_error(found, wanted), 1.3 * relative_error(allowed, wanted) + 1e-3
            print(f"{recipe}, {frames} frames of {size}, {name}: {error:.2e}, allowed {limit:.2e}")
            if not error < limit:
                worse.append(f"{frames} frames of {size}, {name}: {error:.2e}, not below {limit:.2e}")
    assert not worse, "\n".join(worse)


def test_a_graph_reads_the_static_scales_that_layers_hold(weights: dict[str, Tensor]) -> None:
    model, images = build(weights, "int8_static", "native"), images_of(2)
    modes = [(model(images), model.runtime_report().mode)[1] for _ in range(3)]
    assert modes == ["fused", "fused, CUDA graph", "fused, CUDA graph"]
    before = model(images).depth
    for block in model.aggregator.frame_blocks:  # all codes become zeros: the attention of a frame is lost
        block.attn.proj.input_scale.mul_(1000)
    replayed = model(images).depth
    assert model.runtime_report().mode == "fused, CUDA graph"
    assert not torch.equal(replayed, before)
    model.runtime.reset()
    assert torch.equal(replayed, model(images).depth)
    assert model.runtime_report().mode == "fused"


def test_it_runs_by_itself_when_native(int8: VGGTInt8) -> None:
    images = images_of(2)
    modes = [(int8(images), int8.runtime_report().mode)[1] for _ in range(3)]
    assert modes == ["fused", "fused, CUDA graph", "fused, CUDA graph"]
    assert int8.runtime_report().graphs == ((1, 2, 3, *SIZE),)


def test_replays_equal_eager_and_are_not_overwritten(int8: VGGTInt8) -> None:
    first, second = images_of(2, seed=1), images_of(2, seed=2)
    eager = [int8(x) for x in (first,)]
    kept = [int8(first), int8(second), int8(first)]
    assert int8.runtime_report().mode == "fused, CUDA graph"
    for name in FIELDS:
        assert torch.equal(kept[0][name], kept[2][name])
        assert not torch.equal(kept[0][name], kept[1][name])
        assert relative_error(kept[0][name], eager[0][name]) < 1e-5
    int8.set_runtime("off")
    assert relative_error(kept[1].depth, int8(second).depth) < 0.01


@pytest.mark.parametrize("frames", [1, 10])
def test_branches_change_no_result(int8: VGGTInt8, monkeypatch: pytest.MonkeyPatch, frames: int) -> None:
    """Replays back to back, each with another input: a branch that starts too early reads what was there before."""
    inputs = [images_of(frames, seed=i) for i in range(3)]
    monkeypatch.setattr(branches, "BRANCHES", False)
    want = [int8(x) for x in inputs]
    monkeypatch.setattr(branches, "BRANCHES", True)
    int8.set_runtime("auto")
    int8(inputs[0])
    got = [int8(inputs[i % 3], check_finite=False) for i in range(30)]
    assert int8.runtime_report().mode == "fused, CUDA graph"
    for i, output in enumerate(got):
        for name in FIELDS:
            assert torch.equal(output[name], got[i % 3][name]), f"replay {i}: {name}"
            assert relative_error(output[name], want[i % 3][name]) < 1e-5, f"replay {i}: {name}"


def test_key_frames_in_graphs_and_in_pieces_are_those_of_the_network(int8: VGGTInt8) -> None:
    images, keywords = images_of(7), {"global_attention": "keyframes", "keyframes": 2}
    int8.set_runtime("off")
    exact, want = int8(images), int8(images, **keywords)
    int8.set_runtime("auto")
    found = {"fused": int8(images, **keywords), "graph": int8(images, **keywords)}
    assert int8.runtime_report().mode == "fused, CUDA graph"
    other = int8(images, global_attention="keyframes", keyframes=3)
    assert int8.runtime_report().mode == "fused", "another choice is another graph"
    assert not torch.equal(other.depth, found["graph"].depth)
    for low_vram in (False, True):
        int8.set_runtime("on", low_vram)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runtime, "GRAPH_TOKENS", 0)
            found[f"pieces, low_vram={low_vram}"] = int8(images, **keywords)
    for way, got in found.items():
        for name in FIELDS:
            moved = relative_error(want[name], exact[name])
            assert relative_error(got[name].cuda(), want[name]) < 0.2 * moved, (
                f"{way}: {name}, key frames moved {moved}"
            )


def test_replays_from_other_streams_wait_their_turn(int8: VGGTInt8) -> None:
    inputs = [images_of(1, seed=i) for i in range(6)]
    want = [int8(x).depth for x in inputs]
    streams = [torch.cuda.Stream() for _ in range(3)]
    torch.cuda.synchronize()
    got = []
    for i, x in enumerate(inputs):
        with torch.cuda.stream(streams[i % 3]):
            got.append(int8(x, check_finite=False).depth)
    torch.cuda.synchronize()
    assert all(torch.equal(g, w) or relative_error(g, w) < 1e-5 for g, w in zip(got, want, strict=True))


def test_weights_changed_in_place_or_replaced_are_used(weights: dict[str, Tensor]) -> None:
    model = build(weights, "int8_dynamic", "native")
    images = images_of(1)
    before = [model(images).depth for _ in range(3)][-1]
    model.depth_head.norm.weight.data.mul_(1.5)
    assert not torch.equal(model(images).depth, before)
    model.depth_head.norm.weight.data = model.depth_head.norm.weight.data / 1.5
    torch.testing.assert_close(model(images).depth, before, rtol=0.02, atol=0.02)
    assert model.runtime_report().mode == "fused", "a new shape for the graphs, since memory moved"


@pytest.mark.parametrize(("frames", "gib"), [(1, 1.8), (10, 2.3), (32, 3.2), (100, 5.5)])
def test_peak_memory_with_weights(int8: VGGTInt8, frames: int, gib: float) -> None:
    images = images_of(frames)
    release()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(3 if frames <= 10 else 1):
        int8(images, check_finite=False)
    peak, reserved = torch.cuda.max_memory_allocated() / GIB, torch.cuda.max_memory_reserved() / GIB
    print(f"{frames} frames: peak {peak:.2f} GiB, reserved {reserved:.2f} GiB, {int8.runtime_report()}")
    assert peak <= gib


def test_the_estimate_is_above_the_truth_but_not_far(int8: VGGTInt8) -> None:
    int8.set_runtime("on")
    for frames in (10, 40):
        images = images_of(frames)
        shape = memory.Shape(1, frames, *SIZE, ("camera", "depth", "point"), 2)
        release()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        int8(images, check_finite=False)
        used = torch.cuda.max_memory_allocated() - before
        estimate = shape.peak_bytes(int8.config, PLANS[0])
        print(f"{frames} frames: used {used / 1e9:.2f} GB, estimated {estimate / 1e9:.2f}")
        assert 0.5 * estimate < used < estimate


def test_repeated_calls_leak_nothing(int8: VGGTInt8) -> None:
    def calls() -> None:
        for frames in (1, 2, 3, 4, 5, 6):  # more shapes than graphs are kept
            for _ in range(3):
                int8(images_of(frames))

    calls()
    release()
    allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for _ in range(3):
        calls()
    release()
    assert len(int8.runtime_report().graphs) == CAPACITY
    assert torch.cuda.memory_allocated() <= allocated + (8 << 20)
    assert torch.cuda.memory_reserved() <= reserved + (256 << 20)


def test_a_deleted_model_gives_its_memory_back(weights: dict[str, Tensor]) -> None:
    release()
    before = torch.cuda.memory_allocated()
    model = build(weights, "int8_dynamic", "native")
    for _ in range(3):
        model(images_of(1))
    del model
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() <= before + (64 << 20), "tables and library workspaces alone may stay"


def limit(gib: float) -> None:
    torch.cuda.set_per_process_memory_fraction(gib * GIB / torch.cuda.mem_get_info()[1])


def test_a_smaller_plan_is_chosen_by_free_memory(int8: VGGTInt8) -> None:
    images = images_of(40)
    want = int8(images)
    release()
    held = torch.cuda.memory_reserved() / GIB
    int8.set_runtime("on")
    limit(held + 1.2)
    got = int8(images, check_finite=False)
    assert int8.runtime_report().plan in PLANS[1:]
    assert relative_error(got.depth.cuda(), want.depth) < 0.02


def test_graphs_make_room_for_a_larger_call(int8: VGGTInt8) -> None:
    for _ in range(2):
        int8(images_of(10))
    assert int8.runtime_report().mode == "fused, CUDA graph"
    images = images_of(20)  # the fastest plan needs 1.3 GiB: 0.9 and what the graph of 10 frames holds
    release()
    limit(torch.cuda.memory_reserved() / GIB + 0.9)
    needed, free = memory.Shape(1, 20, *SIZE, ("camera", "depth", "point"), 2), memory.free_gpu_bytes(images.device)
    room = f"{needed.peak_bytes(int8.config, PLANS[0]) / GIB:.2f} GiB needed, {free / GIB:.2f} free with graphs"
    int8(images, check_finite=False)
    assert int8.runtime_report().graphs == (), room
    assert int8.runtime_report().plan.frames == PLANS[0].frames, f"{room}: {int8.runtime_report()}"


def test_what_graphs_of_another_model_hold_is_not_free(int8: VGGTInt8) -> None:
    other = Runtime(int8)
    for _ in range(2):
        other(images_of(10))
    assert other.report().graphs
    images = images_of(20)
    int8.set_runtime("on")
    release()
    limit(torch.cuda.memory_reserved() / GIB + 0.9)
    int8(images, check_finite=False)
    assert int8.runtime_report().plan == PLANS[1], "chosen beforehand, not after running out of memory"
    assert other.report().graphs, "which are not ours to drop"


def test_out_of_memory_is_caught_once(int8: VGGTInt8, monkeypatch: pytest.MonkeyPatch) -> None:
    images = images_of(40)
    int8.set_runtime("on")
    monkeypatch.setattr(runtime, "free_gpu_bytes", lambda _: 1 << 40)
    release()
    limit(torch.cuda.memory_reserved() / GIB + 1.2)
    with pytest.warns(RuntimeWarning, match="moved to the CPU"):
        output = int8(images, check_finite=False)
    assert int8.runtime_report().plan == SMALLEST
    assert output.depth.device.type == "cpu"
    assert bool(output.depth.isfinite().all())


def test_then_it_says_how_many_frames_fit(int8: VGGTInt8) -> None:
    images = images_of(100)
    int8.set_runtime("on")
    release()
    limit(torch.cuda.memory_reserved() / GIB + 0.7)
    with pytest.raises(torch.OutOfMemoryError, match=r"about \d+ frames of this size fit"):
        int8(images)
    torch.cuda.set_per_process_memory_fraction(1.0)
    assert int8(images_of(2)).depth is not None, "and the model goes on working"


@pytest.mark.parametrize("order", [CUDNN, FLASH])
def test_attention_copies_neither_its_input_nor_its_output(order: object) -> None:
    qkv = torch.randn(2, 1041, 3, 16, 64, device="cuda", dtype=torch.float16)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with sdpa_kernel(order):
        y = F.scaled_dot_product_attention(q, k, v)
    used = torch.cuda.max_memory_allocated() - before
    assert y.transpose(1, 2).is_contiguous()
    assert used < 2 * y.numel() * y.element_size(), "copies of q, k and v would be three times the output"


def test_attention_beyond_31_bits() -> None:
    """qkv of 2.2e9 elements; some rows against fp32."""
    tokens, heads, dim = 1_440_000, 8, 64
    qkv = torch.empty(1, tokens, 3, heads, dim, device="cuda", dtype=torch.float16).normal_()
    assert qkv.numel() > 2**31
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    y = attention(q, k, v).unflatten(2, (heads, dim))
    rows = torch.tensor([0, 1, tokens // 2, tokens - 1], device="cuda")
    for head in (0, heads - 1):
        scores = (q[0, head, rows].float() @ k[0, head].float().T) * dim**-0.5
        want = scores.softmax(-1) @ v[0, head].float()
        assert relative_error(y[0, rows, head], want) < 0.02


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_convolutions_with_what_is_fused_to_them(dtype: torch.dtype) -> None:
    for in_channels, out_channels, size in ((256, 256, (112, 148)), (128, 32, (56, 74)), (512, 256, (19, 23))):
        layer = nn.Conv2d(in_channels, out_channels, 3, padding=1).cuda()
        conv = call_conv(layer, dtype)
        x = torch.randn(2, in_channels, *size, device="cuda").to(dtype).to(memory_format=torch.channels_last)
        with torch.no_grad():
            plain = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)
            z = torch.randn_like(plain).to(dtype).contiguous(memory_format=torch.channels_last)
            for got, want in ((conv.relu(x), plain.relu()), (conv.add_relu(x, z), (plain + z.double()).relu())):
                assert got.is_contiguous(memory_format=torch.channels_last)
                assert relative_error(got, want) < (3e-3 if dtype != torch.bfloat16 else 1e-2)


SCRIPT = """
import sys, threading, time, torch
from triton import knobs
from tests.runtime.test_cuda import build, images_of
from vggt_int8 import VGGT, VGGTConfig

late = []
def note(src, cache_hit, **_):
    if threading.current_thread() is threading.main_thread():
        late.append(src.name)
knobs.compilation.listener = note

with torch.device("cuda"):
    weights = VGGT(VGGTConfig(enable_track=False)).state_dict()
model = build({name: tensor.cpu() for name, tensor in weights.items()}, "int8_dynamic", "native")
images = images_of(int(sys.argv[1]))
torch.cuda.synchronize()
for _ in range(3):
    start = time.perf_counter()
    model(images)
    torch.cuda.synchronize()
    print(time.perf_counter() - start)
print(*late, file=sys.stderr)
sys.exit(len(late))
"""


@pytest.mark.parametrize("frames", [1, 10])
def test_the_first_call_on_a_fresh_machine(tmp_path: Path, frames: int) -> None:
    """Every kernel is compiled beforehand, side by side, and none by the call that needs it."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", SCRIPT, str(frames)]
    root = Path(__file__).parents[2]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=root)
    assert process.returncode == 0, process.stderr
    seconds = [float(line) for line in process.stdout.split()]
    print(f"{frames} frames: first three calls {seconds} s")
    assert seconds[0] < 6
    assert seconds[2] < 1
