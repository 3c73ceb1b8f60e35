"""The report holds what a reader needs to repeat a run, and its numbers are real."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from vggt_int8.export.report import (
    PhaseClock,
    RunReport,
    describe_inputs,
    describe_machine,
    installed_versions,
    peak_memory,
)
from vggt_int8.images import ImageTransform

CPU = torch.device("cpu")


def test_document_is_json_with_every_part(transforms: list[ImageTransform]) -> None:
    inputs = describe_inputs([Path("b/2.jpg"), Path("a/1.jpg")], transforms)
    report = RunReport("model", "int8_dynamic", "native", CPU, "float32", inputs, {"load": 1.23456})
    document = json.loads(json.dumps(report.to_document(), allow_nan=False))
    assert document["recipe"] == "int8_dynamic"
    assert document["backend"] == "native"
    assert [entry["file"] for entry in document["inputs"]] == ["b/2.jpg", "a/1.jpg"]
    assert document["inputs"][1]["original_size"] == [280, 260]
    assert document["seconds"] == {"load": 1.2346}
    assert document["peak_memory_bytes"]["rss"] > 0
    assert document["versions"]["torch"] == torch.__version__


@pytest.mark.slow
def test_versions_come_without_importing_the_libraries() -> None:
    script = (
        "import sys; from vggt_int8.export.report import installed_versions; before = set(sys.modules);"
        "v = installed_versions(); assert v['torchao'] and v['bitsandbytes'] and v['transformers'], v;"
        "new = {name.split('.')[0] for name in set(sys.modules) - before};"
        "assert not {'torchao', 'bitsandbytes', 'transformers', 'triton'} & new, new"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])


def test_a_package_that_is_missing_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vggt_int8.export.report.PACKAGES", ("surely-not-installed",))
    versions = installed_versions()
    assert versions["surely-not-installed"] is None
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))


def test_phases_add_up_and_failed_ones_do_not_count() -> None:
    clock = PhaseClock("cpu")
    for _ in range(2):
        with clock.phase("sleep"):
            time.sleep(0.02)
    with pytest.raises(RuntimeError), clock.phase("fails"):
        raise RuntimeError
    assert list(clock.seconds) == ["sleep"]
    assert clock.seconds["sleep"] >= 0.04


def test_peak_memory_sees_a_large_allocation() -> None:
    before = peak_memory(CPU)["rss"]
    assert before is not None
    current_kb = int(Path("/proc/self/statm").read_text().split()[1]) * 4
    size = max(before - current_kb * 1024, 0) + 200_000_000
    block = torch.ones(size, dtype=torch.uint8)
    after = peak_memory(CPU)["rss"]
    assert after is not None
    assert after >= before + 150_000_000
    assert block[-1] == 1
    assert peak_memory(CPU)["cuda_allocated"] is None


def test_machine_names_the_cpu_and_no_gpu_on_the_cpu() -> None:
    machine = describe_machine(CPU)
    assert machine["cpu"]
    assert machine["gpu"] is None
    assert machine["torch_threads"] == torch.get_num_threads()


@pytest.mark.gpu
def test_machine_and_peak_memory_on_cuda() -> None:
    device = torch.device("cuda")
    torch.ones(1_000_000, device=device)
    gpu = describe_machine(device)["gpu"]
    assert gpu["name"] == torch.cuda.get_device_name(device)
    allocated = peak_memory(device)["cuda_allocated"]
    assert allocated is not None
    assert allocated >= 4_000_000
