"""How many frames a second `vggt_int8.scenes` renders, by device, supersampling and compilation.

    python -m benchmarks.scenes_throughput [--scenes 48] [--frames 4] [--size 112] [--seconds 3]

Prints a table, then one JSON document as the last line. Drawing the parameters on the CPU is part of the time.
"""

import argparse
import json
import platform
import time

import torch

from vggt_int8.scenes import render_scenes, scene_seeds


def frames_per_second(args: argparse.Namespace, device: str, supersample: int, compiled: bool) -> dict[str, object]:
    def batch(first: int) -> None:
        seeds = scene_seeds("free", range(first, first + args.scenes))
        render_scenes(
            seeds, args.frames, (args.size, args.size), device=device, supersample=supersample, compiled=compiled
        )
        if device == "cuda":
            torch.cuda.synchronize()

    start = time.perf_counter()
    batch(0)
    warm_up = time.perf_counter() - start
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    rounds, start = 0, time.perf_counter()
    while rounds < 2 or time.perf_counter() - start < args.seconds:
        rounds += 1
        batch(rounds * args.scenes)
    rate = rounds * args.scenes * args.frames / (time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None
    return {
        "device": device,
        "supersample": supersample,
        "compiled": compiled,
        "frames_per_s": round(rate, 1),
        "first_batch_s": round(warm_up, 2),
        "peak_mb": None if peak is None else round(peak),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=48, help="scenes a batch")
    parser.add_argument("--frames", type=int, default=4, help="views a scene")
    parser.add_argument("--size", type=int, default=112, help="pixels a side")
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each row")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(
        f"{args.scenes} scenes x {args.frames} views of {args.size} x {args.size} on {name}, torch {torch.__version__}"
    )
    print(f"{'supersample':>11} {'compiled':>8} {'frames/s':>9} {'first batch s':>13} {'peak MB':>8}")
    rows = []
    for compiled in (False, True) if device == "cuda" else (False,):
        for supersample in (1, 2):
            row = frames_per_second(args, device, supersample, compiled)
            rows.append(row)
            print(
                f"{supersample:>11} {compiled!s:>8} {row['frames_per_s']:>9} {row['first_batch_s']:>13} "
                f"{row['peak_mb'] or '-':>8}",
                flush=True,
            )
    print(json.dumps({"hardware": name, "machine": platform.machine(), "torch": torch.__version__, "rows": rows}))


if __name__ == "__main__":
    main()
