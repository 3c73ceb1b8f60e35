"""Frames shared out over NCCL, in a group of one process: the code of several GPUs, on one. `tests/gpu/test_several.py`
has two.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.runtime.cuda.models import FIELDS, GIB, images_of, release
from vggt_int8 import VGGTInt8
from vggt_int8.difference import relative_error
from vggt_int8.runtime import runtime
from vggt_int8.runtime.memory import PLANS


@pytest.fixture
def shared(int8: VGGTInt8, tmp_path: Path) -> Iterator[VGGTInt8]:
    dist.init_process_group(store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    int8.set_runtime("on")
    yield int8
    int8.set_context_parallel("off")
    dist.destroy_process_group()


@pytest.mark.parametrize("asked", [{}, {"global_attention": "keyframes", "keyframes": 5}], ids=["exact", "key frames"])
@pytest.mark.parametrize("outputs", ["all", "own"])
def test_results_are_those_of_a_call_alone(shared: VGGTInt8, asked: dict[str, Any], outputs: Any) -> None:
    images = images_of(20)
    want = shared(images, **asked)
    shared.set_context_parallel(outputs)
    got = shared(images, **asked)
    assert shared.runtime_report().shards == (20,)
    errors = {name: relative_error(got[name], want[name]) for name in FIELDS}
    print(errors)
    assert max(errors.values()) < 0.02


def test_it_begins_again_under_a_smaller_plan_where_memory_runs_out(
    shared: VGGTInt8, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = images_of(40)
    want = shared(images)
    monkeypatch.setattr(runtime, "free_gpu_bytes", lambda _: 1 << 40)  # the fastest plan is tried
    shared.set_context_parallel("all")
    release()
    torch.cuda.set_per_process_memory_fraction(
        (torch.cuda.memory_reserved() + 1.2 * GIB) / torch.cuda.get_device_properties(0).total_memory
    )
    got = shared(images, check_finite=False)
    plan = shared.runtime_report().plan
    print(plan)
    assert plan in PLANS[1:]
    assert relative_error(got.depth.cuda(), want.depth) < 0.02
