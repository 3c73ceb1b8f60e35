"""Variants of `vggt-int8 bench` in turns, so that their ratio holds where other work slows some moments and not others.

    python -m benchmarks.in_turns int8_dynamic:native int8_rotated:native [--frames 1 10] [--rounds 5] [--seconds 0.5]
                                  [--model random:vggt-1b] [--size 392x518] [--device cuda] [--out FILE]

All variants are in memory together. A round times each of them once for --seconds and takes its median; the next one
goes the other way round. Shown are the median over rounds, the fastest and the slowest, and the median of the ratios to
the first variant, each within its round. One JSON line for each number of frames.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

from vggt_int8.bench.source import default_source, load_source
from vggt_int8.bench.timing import inputs_that_fill_the_cache, release, time_calls
from vggt_int8.bench.variants import find_variants
from vggt_int8.export.report import describe_machine, installed_versions
from vggt_int8.files import append_json_line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="+")
    parser.add_argument("--frames", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--model", help="as for vggt-int8 bench")
    parser.add_argument("--size", default="392x518", help="height x width in pixels")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="file to append the JSON lines to")
    arguments = parser.parse_args()
    device, start = torch.device(arguments.device), time.perf_counter()
    source = load_source(arguments.model or default_source(device), device)
    networks = {}
    for variant in find_variants(arguments.variants):
        networks[variant.name] = variant.build(source, device)
        print(f"{variant.title}: built after {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    release(device)
    height, width = map(int, arguments.size.split("x"))
    facts = {"model": source.name, "machine": describe_machine(device), "versions": installed_versions()}
    print(f"{source.name}, {height} x {width} pixels, {facts['machine']}\n", flush=True)
    print(f"{'frames':>6s}  {'variant':32s}{'ms':>9s}{'fastest':>9s}{'slowest':>9s}{'ratio':>7s}")
    for frames in arguments.frames:
        inputs = inputs_that_fill_the_cache(source.images(frames, (height, width), device))
        for network in networks.values():
            time_calls(network, inputs, 0)  # which compiles, and captures graphs
        times: dict[str, list[float]] = {name: [] for name in networks}
        for number in range(arguments.rounds):
            for name in list(networks)[:: -1 if number % 2 else 1]:
                times[name].append(time_calls(networks[name], inputs, arguments.seconds).ms)
        for network in networks.values():
            network.reset()
        first = next(iter(times.values()))
        ratios = {
            name: statistics.median(a / b for a, b in zip(found, first, strict=True)) for name, found in times.items()
        }
        for name, found in times.items():
            summary = f"{statistics.median(found):9.2f}{min(found):9.2f}{max(found):9.2f}{ratios[name]:7.3f}"
            print(f"{frames:6d}  {name:32s}{summary}", flush=True)
        if arguments.out is not None:
            row = {"kind": "in turns", "frames": frames, "size": [height, width], "ms": times, "ratios": ratios}
            append_json_line(arguments.out, row | facts | {"command": " ".join(sys.argv)})


if __name__ == "__main__":
    main()
