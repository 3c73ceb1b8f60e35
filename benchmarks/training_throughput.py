"""Training steps a second on one GPU and on several, each with as many scenes a step.

    python -m benchmarks.training_throughput -o FOLDER --gpus 1 2 4 8 --rows rows.jsonl

trains by the program (`accelerate launch -m vggt_int8 train run`), by default the run of the embedded model, from
nothing and for --steps steps on each number of GPUs. The first steps of every shape are compiled and recorded, so the
rate is the median over the last third of the run, of the log's own frames a second. `--device cpu --config
tests/training/tiny.toml --steps 12` shows on CPUs that it runs.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from vggt_int8.export.report import describe_machine, installed_versions
from vggt_int8.files import append_json_line
from vggt_int8.training.config import load_run
from vggt_int8.training.log import LOG

CONFIG = Path(__file__).parent.parent / "vggt_int8" / "assets" / "mini" / "training.toml"


def train(config: Path, out: Path, steps: int, gpus: int, device: str) -> None:
    """One run, as a user would start it."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(gpus), "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["--cpu"] if device == "cpu" else ["--multi_gpu"] if gpus > 1 else []
    command = [*launch, "-m", "vggt_int8", "train", "run", "--config", str(config), "--out", str(out)]
    subprocess.run([*command, "--total-steps", str(steps)], check=True, stdout=sys.stderr, env=_environment())


def _environment() -> dict[str, str]:
    """Without NVLink multicast, and with the checkout's package for the processes of a launcher."""
    root = str(Path(__file__).parent.parent)
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {"NCCL_NVLS_ENABLE": "0", **os.environ, "PYTHONPATH": paths}


def rate(log: Path) -> float:
    """Frames a second of the last third of a run, the median of its lines. Raises ValueError without any."""
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    rates = [entry["frames_per_second"] for entry in entries if entry["kind"] == "train"]
    if not rates:
        raise ValueError(f"{log} has no line of a step: take more steps than the configuration's log_steps")
    return statistics.median(rates[-max(1, len(rates) // 3) :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True, help="a new folder for the runs")
    parser.add_argument("--rows", type=Path, help="file to append the JSON lines to")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    arguments = parser.parse_args()
    if arguments.out.exists() and any(arguments.out.iterdir()):
        parser.error(f"{arguments.out} is not empty, and its runs would go on: give a new folder")
    frames, first = load_run(arguments.config)[0].data.frames_per_step, None
    for gpus in arguments.gpus:
        out = arguments.out / f"gpus_{gpus}"
        train(arguments.config, out, arguments.steps, gpus, arguments.device)
        found = rate(out / LOG)
        first = found if first is None else first
        row: dict[str, Any] = {
            "config": arguments.config.name,
            "gpus": gpus,
            "steps": arguments.steps,
            "frames_per_second": round(found, 1),
            "steps_per_second": round(found / (frames * gpus), 3),
            "speed_up": round(found / first, 3),
            "machine": describe_machine(torch.device(arguments.device)),
            "versions": installed_versions(),
        }
        print(json.dumps(row), flush=True)
        if arguments.rows:
            append_json_line(arguments.rows, row)


if __name__ == "__main__":
    main()
