"""Several processes train together, on CPUs and on GPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training.runs import entries
from tests.warm import python
from vggt_int8.training.captured import average_gradients
from vggt_int8.training.checkpoint import read_facts
from vggt_int8.training.processes import make_accelerator


def averaged(process: int, folder: str) -> None:
    """Run by two processes: their gradients are averaged, in each parameter's own memory layout."""
    where = f"file://{folder}/meeting"
    torch.distributed.init_process_group("gloo", init_method=where, rank=process, world_size=2)
    module = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 2), torch.nn.Linear(3, 2))
    module[0].to(memory_format=torch.channels_last)
    kinds = [torch.channels_last, torch.contiguous_format, torch.contiguous_format]
    numbers = [torch.arange(p.numel()).view(p.shape) * 1.0 for p in module.parameters()]
    for parameter, number, kind in zip(module.parameters(), numbers, kinds, strict=False):  # the last one has none
        parameter.grad = (number * (process + 1)).contiguous(memory_format=kind)
    kept = [parameter.grad for parameter in module.parameters()]
    average_gradients(module.parameters())
    for parameter, number, old in zip(module.parameters(), numbers, kept, strict=True):
        assert parameter.grad is old
        assert old is None or torch.equal(old, number * 1.5)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_gradients_of_processes_are_averaged(tmp_path: Path) -> None:
    # Forks, which need not import anything anew; none of them runs what a thread of this process would be needed for.
    torch.multiprocessing.start_processes(averaged, (str(tmp_path),), nprocs=2, start_method="fork")


def test_processes_that_would_train_alone_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CPUs accelerate counts one of torchrun's processes, unless it is told that it has none but CPUs."""
    assert make_accelerator().num_processes == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="2 processes were started, and accelerate makes use of 1: on CPUs start"):
        make_accelerator()


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_learn_the_same_with_and_without_recorded_steps(tmp_path: Path) -> None:
    totals = []
    for graph in ("true", "false"):
        config, out = tmp_path / f"{graph}.toml", tmp_path / graph
        config.write_text(f"cuda_graph = {graph}\n" + (Path(__file__).parent / "tiny.toml").read_text())
        command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
        command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        command += ["-m", "vggt_int8", "train", "run", "--config", str(config), "--out", str(out)]
        root = Path(__file__).parents[2]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=root)
        assert result.returncode == 0, result.stderr[-3000:]
        totals.append([entry["total"] for entry in entries(out, "train")])
    assert totals[0] == pytest.approx(totals[1], rel=1e-2)


@pytest.mark.slow
def test_two_processes_train_together(tmp_path: Path) -> None:
    """By torchrun, as `accelerate launch` starts them on two GPUs; on CPUs that starts a single one, without a word."""
    config = tmp_path / "run.toml"
    mini = (Path(__file__).parent / "tiny.toml").read_text()
    config.write_text(mini)
    root = Path(__file__).parents[2]
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "vggt_int8"]
    command += ["train", "run", "--config", str(config), "--out", str(tmp_path / "out")]
    # Without the last one accelerate would take each process on a CPU for the only one.
    environment = {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    result = python(*command, env=os.environ | environment)
    assert result.returncode == 0, result.stderr[-3000:]
    assert (result.stdout + result.stderr).count("from step 0 to 4") == 1, "the first of them speaks for both"
    assert read_facts(tmp_path / "out" / "checkpoint")["step"] == 6
    assert len(entries(tmp_path / "out", "train")) == 3
