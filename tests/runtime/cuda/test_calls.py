"""Calls on a GPU: the same numbers, fused, in graphs and in branches of these, after weights changed."""

import pytest
import torch
from torch import Tensor

from tests.runtime.cuda.models import FIELDS, SIZE, build, images_of
from vggt_int8 import VGGTInt8
from vggt_int8.difference import relative_error
from vggt_int8.runtime import Runtime, branches, runtime

STATIC = ("int8_static", "int8_static_rotated")


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
    reports = [(int8(images), int8.runtime_report())[1] for _ in range(3)]
    assert [report.mode for report in reports] == ["fused", "fused, CUDA graph", "fused, CUDA graph"]
    assert len(reports[0].attention_kernels) == 1
    assert {report.attention_kernels for report in reports} == {reports[0].attention_kernels}, "replays have no launch"
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


def test_key_frames_in_graphs_and_in_pieces_are_those_of_the_network(weights: dict[str, Tensor]) -> None:
    """In fp32: INT8 rounds poses of random weights by as many per cent as key frames move them. Poses tell which frames
    were looked at; random heads make maps that hardly depend on it, and cuDNN's convolutions multiply in TF32.
    """
    model = build(weights, "fp16", "auto").float()
    images, keywords = images_of(7), {"global_attention": "keyframes", "keyframes": 2}
    model.set_runtime("off")
    exact, want = model(images), model(images, **keywords)
    model.set_runtime("on")
    found = {"fused": model(images, **keywords), "graph": model(images, **keywords)}
    assert model.runtime_report().mode == "fused, CUDA graph"
    other = model(images, global_attention="keyframes", keyframes=3)
    assert model.runtime_report().mode == "fused", "another choice is another graph"
    assert not torch.equal(other.depth, found["graph"].depth)
    for low_vram in (False, True):
        model.set_runtime("on", low_vram)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runtime, "GRAPH_TOKENS", 0)
            found[f"pieces, low_vram={low_vram}"] = model(images, **keywords)
    moved = relative_error(want.pose_enc, exact.pose_enc)
    for way, got in found.items():
        assert relative_error(got.pose_enc, want.pose_enc) < 0.01 * moved, f"{way}: key frames moved poses {moved}"
        for name in FIELDS:
            assert relative_error(got[name].cuda(), want[name]) < 1e-3, f"{way}: {name}"


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
