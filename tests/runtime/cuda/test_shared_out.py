"""Frames shared out over NCCL, in a group of one process: the code of several GPUs, on one. `tests/gpu/test_several.py`
has two.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.runtime.cuda.models import FIELDS, GIB, build, images_of, release
from vggt_int8 import VGGTInt8
from vggt_int8.difference import relative_error
from vggt_int8.runtime import runtime
from vggt_int8.runtime.memory import PLANS


@pytest.fixture
def share(tmp_path: Path) -> Iterator[Callable[[VGGTInt8, Any], None]]:
    """`model.set_context_parallel(outputs)` in a group of one process, for the length of a test."""
    dist.init_process_group(store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    models = []

    def share(model: VGGTInt8, outputs: Any) -> None:
        models.append(model)
        model.set_context_parallel(outputs)

    yield share
    for model in models:
        model.set_context_parallel("off")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def floats(weights: dict[str, Tensor]) -> VGGTInt8:
    """In fp32. Queries and keys are products of their own where frames are shared out, so that sums are rounded
    otherwise; in INT8 codes tip over then, and poses of random weights move by 3 %.
    """
    return build(weights, "fp16", "auto").float()


@pytest.mark.parametrize("asked", [{}, {"global_attention": "keyframes", "keyframes": 5}], ids=["exact", "key frames"])
@pytest.mark.parametrize("outputs", ["all", "own"])
def test_results_are_those_of_a_call_alone(
    floats: VGGTInt8, share: Callable[[VGGTInt8, Any], None], asked: dict[str, Any], outputs: Any
) -> None:
    images = images_of(20)
    floats.set_runtime("on")
    want = floats(images, **asked)
    share(floats, outputs)
    got = floats(images, **asked)
    assert floats.runtime_report().shards == (20,)
    errors = {name: relative_error(got[name], want[name]) for name in FIELDS}
    print(errors)
    assert errors["pose_enc"] < 1e-4  # two key frames of seven move them by 1.7e-2
    assert max(errors.values()) < 1e-3  # cuDNN's convolutions multiply in TF32


def test_it_begins_again_under_a_smaller_plan_where_memory_runs_out(
    int8: VGGTInt8, share: Callable[[VGGTInt8, Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = images_of(40)
    int8.set_runtime("on")
    want = int8(images)
    monkeypatch.setattr(runtime, "free_gpu_bytes", lambda _: 1 << 40)  # the fastest plan is tried
    share(int8, "all")
    release()
    torch.cuda.set_per_process_memory_fraction(
        (torch.cuda.memory_reserved() + 1.2 * GIB) / torch.cuda.get_device_properties(0).total_memory
    )
    got = int8(images, check_finite=False)
    plan = int8.runtime_report().plan
    print(plan)
    assert plan in PLANS[1:]
    assert relative_error(got.depth.cuda(), want.depth) < 0.02
