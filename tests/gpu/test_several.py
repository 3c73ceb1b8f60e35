"""`batch`, and one scene shared out over NCCL, on the GPUs of a machine: on two where there are two."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCENES = ROOT / "vggt_int8" / "assets" / "scenes"

pytestmark = pytest.mark.gpu
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="wants two GPUs")


def run_batch(folder: Path, scenes: int) -> list[str]:
    """The device of each scene."""
    for i in range(scenes):
        shutil.copytree(SCENES / "room", folder / "scenes" / f"scene_{i}")
    out = folder / "out"
    command = [sys.executable, "-m", "vggt_int8", "batch", "embedded", str(folder / "scenes"), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads(path.read_text())["device"] for path in out.glob("scene_*/report.json")]


def test_batch_runs_on_a_gpu(tmp_path: Path) -> None:
    devices = run_batch(tmp_path, 3)
    assert len(devices) == 3
    assert all(device.startswith("cuda:") for device in devices)


@two_gpus
def test_batch_uses_all_gpus(tmp_path: Path) -> None:
    devices = run_batch(tmp_path, 60)
    assert len(devices) == 60
    assert {"cuda:0", "cuda:1"} <= set(devices)


@two_gpus
def test_one_scene_on_two_gpus(tmp_path: Path) -> None:
    """Results of both ways against one GPU's, by the benchmark's own rows."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "benchmarks.sharded"]
    asked = ["--model", "embedded", "--frames", "9", "--size", "112", "112", "--ways", "exact", "keyframes:4"]
    command = [*launch, *asked, "--repeats", "1", "--out", str(tmp_path / "rows.jsonl")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [(row["way"], row["gpus"]) for row in rows] == [
        (way, gpus) for way in ("exact", "keyframes:4") for gpus in (1, 2)
    ]
    for row in rows:
        print(row)
        assert row["gpus"] == 1 or max(row["errors"].values()) < 0.02, row
