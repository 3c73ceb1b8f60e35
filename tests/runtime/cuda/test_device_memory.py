"""A GPU's memory: within the targets, plans by what is free, no leaks."""

import pytest
import torch
from torch import Tensor

from tests.runtime.cuda.models import GIB, SIZE, build, images_of, release
from vggt_int8 import VGGTInt8
from vggt_int8.difference import relative_error
from vggt_int8.runtime import Runtime, memory, runtime
from vggt_int8.runtime.graphs import CAPACITY
from vggt_int8.runtime.memory import PLANS, SMALLEST


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
    monkeypatch.setattr(runtime, "plans_after", lambda _: (SMALLEST,))
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
