"""Scaling over the GPUs of one host: throughput of `batch`, latency of a long scene, training speed; against targets.

    python -m benchmarks.scaling -o FOLDER

runs each part on 1, 2, 4, … GPUs, in separate processes with NVLink multicast disabled, and writes rows and
`scaling.md` to FOLDER:

    batch      scenes per hour; per GPU 100 scenes of 10 frames and 16 of 100            benchmarks.batch_throughput
    scene      one scene of 200, 500, 1000 frames, sharded; exact attention, key frames   benchmarks.sharded
    training   steps per second of the embedded model's training                          benchmarks.training_throughput

--parts selects parts, --gpus the numbers of GPUs. If a part fails, the others still run; the failed ones are named, and
the exit code is 1. Eight GPUs need about two hours, mostly for 1000 frames on one GPU, and 150 GB of disk. With
`--device cpu` everything runs at a small size, in minutes, as a test of this script.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]
Lines = dict[str, dict[int, tuple[str, float]]]  # quantity -> GPUs -> (formatted value, speed-up over one GPU)
PARTS = ("batch", "scene", "training")
TINY = "tests/training/tiny.toml"


def commands(part: str, out: Path, gpus: Sequence[int], device: str) -> list[list[str]]:
    """The command lines of a part. Each appends its rows to `out`/PART.jsonl."""
    python, numbers, small = [sys.executable, "-m"], [*map(str, gpus)], device == "cpu"
    rows = str(out / f"{part}.jsonl")
    work = ["-o", str(out / part), "--rows", rows, "--gpus", *numbers, "--device", device]
    if part == "batch":
        return [
            [*python, "benchmarks.batch_throughput", *work, "--scenes", *(["3x2"] if small else ["100x10", "16x100"])]
        ]
    if part == "training":
        tiny = ["--config", TINY, "--steps", "12"] if small else []
        return [[*python, "benchmarks.training_throughput", *work, *tiny]]
    launch = [*python, "torch.distributed.run", "--nproc-per-node", str(max(gpus)), "-m", "benchmarks.sharded"]
    launch += ["--gpus", *numbers, "--out", rows, "--device", device]
    if small:
        return [[*launch, "--model", "embedded", "--size", "56", "112", "--frames", "4", "--repeats", "1"]]
    few, many = ["--frames", "200", "500"], ["--frames", "1000", "--repeats", "1"]
    return [[*launch, *few], [*launch, *many]]


def read_rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def lines_of(batch: Iterable[Row], scene: Sequence[Row], training: Sequence[Row]) -> Lines:
    """The rows of the three parts as lines of one table."""
    found: Lines = {}
    for row in batch:
        seconds = {int(gpus): value for gpus, value in row["batch_seconds_per_scene"].items()}
        found[f"`batch`, scenes of {row['images']}, an hour"] = {
            gpus: (f"{3600 / value:,.0f}", row["speed_up"][str(gpus)]) for gpus, value in seconds.items()
        }
    for row in scene:
        name = f"{row['frames']} frames, {row['way']}, s"
        first = found.setdefault(name, {})
        alone = next((other["ms"] for other in scene if same_call(other, row)), row["ms"])
        first[row["gpus"]] = (f"{row['ms'] / 1e3:,.2f}", alone / row["ms"])
    for row in training:
        line = found.setdefault("training, steps a second (x: scenes a second)", {})
        line[row["gpus"]] = (f"{row['steps_per_second']:.2f}", row["speed_up"])
    return found


def same_call(one: Row, other: Row) -> bool:
    return (one["frames"], one["way"]) == (other["frames"], other["way"])


def aims(found: Lines, scene: Sequence[Row]) -> list[tuple[str, str, bool]]:
    """(target, measured value, whether it is met) for every target whose case was measured."""
    told = []
    for name, line in found.items():
        if not name.startswith("`batch`"):
            continue
        for gpus, share in ((2, 0.95), (8, 0.93)):
            if gpus in line and 1 in line:
                told.append(
                    (
                        f"{name}: {share} of linear on {gpus}",
                        f"{line[gpus][1] / gpus:.3f}",
                        line[gpus][1] >= share * gpus,
                    )
                )
    for row in scene:
        seconds, key = row["ms"] / 1e3, (row["frames"], row["way"], row["gpus"])
        if key == (200, "exact", 2) and "speed_up" in row:
            told.append(("200 frames exact on 2 GPUs: 1.7 x one", f"{row['speed_up']:.2f} x", row["speed_up"] >= 1.7))
        for frames, way, limit in ((1000, "exact", 40.0), (1000, "keyframes:40", 2.2)):
            if key == (frames, way, 8):
                told.append((f"{frames} frames, {way}, on 8 GPUs: {limit} s", f"{seconds:.2f} s", seconds <= limit))
    worst = [max(row["errors"].values()) for row in scene if "errors" in row]
    if worst:  # sums in another order: some values cross a border between two codes
        told.append(("outputs of one GPU within 0.02 of their size", f"{max(worst):.2g}", max(worst) < 0.02))
    return told


def document(found: Lines, reached: Sequence[tuple[str, str, bool]]) -> str:
    """Two tables in Markdown: the measurements, and the targets."""
    numbers = sorted({gpus for line in found.values() for gpus in line})
    rows = ["| | " + " | ".join(f"{n} GPU{'s' * (n > 1)}" for n in numbers) + " |", "|---" * (len(numbers) + 1) + "|"]
    for name, line in found.items():
        cells = [f"{line[n][0]} ({line[n][1]:.2f} x)" if n in line else "–" for n in numbers]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    rows += ["", "| aim | found | |", "|---|---|---|"]
    rows += [f"| {aim} | {value} | {'reached' if good else 'missed'} |" for aim, value, good in reached]
    return "\n".join(rows) + "\n"


def default_gpus(device: str) -> list[int]:
    """Powers of two up to the number of GPUs; on CPUs 1 and 2 processes."""
    count = 2 if device == "cpu" else torch.cuda.device_count()
    return [2**i for i in range(count.bit_length()) if 2**i <= count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True, help="new or empty folder")
    parser.add_argument(
        "--gpus", type=int, nargs="+", help="numbers of GPUs; by default 1, 2, 4, … up to all. 1 is always measured"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    arguments = parser.parse_args()
    given = arguments.gpus or default_gpus(arguments.device)
    out, gpus = arguments.out, sorted({1, *given})  # speed-ups are relative to one GPU
    if out.exists() and any(out.iterdir()):
        parser.error(f"{out} is not empty, and the rows of another run would be counted: give a new folder")
    out.mkdir(parents=True, exist_ok=True)
    environment, failed = {"NCCL_NVLS_ENABLE": "0", **os.environ}, []
    for part in arguments.parts:
        for command in commands(part, out, gpus, arguments.device):
            if subprocess.run(command, env=environment).returncode:
                failed.append(part)
    batch, scene, training = (read_rows(out / f"{part}.jsonl") for part in PARTS)
    found = lines_of(batch, scene, training)
    text = document(found, aims(found, scene))
    (out / "scaling.md").write_text(text, encoding="utf-8")
    print(text)
    if failed:
        sys.exit(f"failed, see above: {', '.join(dict.fromkeys(failed))}")


if __name__ == "__main__":
    main()
