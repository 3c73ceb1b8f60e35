"""What the package asks of the machine: CPUs by quota, instruction sets, exact products, GPUs, Triton."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vggt_int8 import cpus, machine
from vggt_int8.kernels import reference


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "5000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "no number\n"}, None),
        (
            {
                "proc/self/cgroup": "0::/pods/one\n",
                "sys/fs/cgroup/pods/one/cpu.max": "max 100000\n",
                "sys/fs/cgroup/pods/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/other/cpu.max": "100000 100000\n",
            },
            4,
        ),
        (
            {
                "proc/self/cgroup": "5:memory:/docker/a\n4:cpu,cpuacct:/docker/a\n0::/\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "150000\n",  # as the container sees its own group
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "50000\n",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
    ],
)
def test_quota(tmp_path: Path, files: dict[str, str], limit: int | None) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert cpus.quota(tmp_path) == limit


def test_no_more_threads_than_pytorchs_or_the_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    for limit, expected in ((None, 8), (2, 2), (64, 8)):
        monkeypatch.setattr(machine, "quota", lambda limit=limit: limit)
        assert machine.threads() == expected


@pytest.fixture
def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What stands in for /proc/cpuinfo, not made yet."""
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine, "_stated", machine._stated.__wrapped__)
    return tmp_path / "cpuinfo"


def test_the_cpu_as_linux_states_it(cpuinfo: Path) -> None:
    cpuinfo.write_text(
        2 * "processor\t: 0\nmodel\t\t: 106\nmodel name\t: A CPU\ncpu MHz\t: 2600.1\nflags\t\t: fma avx2\n\n"
    )
    assert machine.cpu_name() == "A CPU"
    assert machine.cpu_features() == {"fma", "avx2"}
    assert machine.cpu_identity() == "flags: fma avx2\nmodel name: A CPU\nmodel: 106", "nothing that changes"


def test_the_cpu_of_a_system_that_states_nothing(cpuinfo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.platform, "processor", lambda: "")
    monkeypatch.setattr(machine.platform, "machine", lambda: "arm64")
    assert (machine.cpu_name(), machine.cpu_features(), machine.cpu_identity()) == ("arm64", frozenset(), "")


def saturating(x: Tensor, weight: Tensor) -> Tensor:
    """The product of a CPU without VNNI: two products are added in 16 bits, which hold no more than 32767."""
    pairs = (x.int()[:, None] * weight.int()[None]).unflatten(-1, (-1, 2)) if x.shape[1] % 2 == 0 else None
    return reference.int8_matmul(x, weight) if pairs is None else pairs.sum(-1).clamp(-32768, 32767).sum(-1).int()


def test_a_product_that_saturates_is_found() -> None:
    assert machine.multiplies_exactly(reference.int8_matmul)
    with torch.device("meta"):  # as while a model is built
        assert machine.multiplies_exactly(reference.int8_matmul)
    # Two products of codes make 32258 at most: what saturates are the unsigned bytes that oneDNN shifts codes to.
    assert not machine.multiplies_exactly(lambda x, w: saturating(x.int() + 128, w) - 128 * w.int().sum(1))


def test_the_int_mm_of_this_cpu_is_what_a_product_shows() -> None:
    x = torch.full((64, 4096), 127, dtype=torch.int8)
    exact = bool((torch._int_mm(x, x.t()) == 127 * 127 * 4096).all())
    assert machine.int_mm_is_exact() <= exact


def test_the_interpreter_passes_for_the_oldest_gpu() -> None:
    assert (machine.architecture(torch.device("cpu")), machine.processors(torch.device("cpu"))) == (80, 2)


def test_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(machine, "architecture", machine.architecture.__wrapped__)
    assert machine.architecture(torch.device("cuda", 0)) == 90


def test_the_memory_of_a_gpu_that_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    mb = 1 << 20
    facts = {"mem_get_info": (600 * mb, 1000 * mb), "memory_reserved": 300 * mb, "memory_allocated": 190 * mb}
    monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda: "native")
    for name, value in {**facts, "get_per_process_memory_fraction": 0.5}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)

    def segment(*sizes: int, device: int = 0, pool: tuple[int, int] = (0, 0)) -> dict[str, Any]:
        """Blocks in use, negative, and free ones, of so many MB."""
        blocks = [{"size": abs(s) * mb, "state": "inactive" if s > 0 else "active_allocated"} for s in sizes]
        return {"device": device, "segment_pool_id": pool, "blocks": blocks}

    graph = segment(50, -2, pool=(0, 1))
    segments = [segment(40), segment(-10, 30), segment(-5, 5, -5, 5), graph, segment(100, device=1)]
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: segments)
    free, device = machine.free_gpu_bytes, torch.device("cuda", 0)
    assert free(device) == (500 - 300 + 70) * mb, "what its share leaves, and what it caches for large tensors"
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 1.0)
    assert free(device) == (600 + 70) * mb
    monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda: "cudaMallocAsync")
    assert free(device) == (600 + 110) * mb


def test_triton_is_looked_for_and_not_imported() -> None:
    assert machine.triton_is_there() == (importlib.util.find_spec("triton") is not None)
