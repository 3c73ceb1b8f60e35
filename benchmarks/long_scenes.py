"""Time and peak memory of long scenes on this GPU: exact global attention, key frames, layers inside frames.

    python benchmarks/long_scenes.py --frames 100 1000 --ways exact keyframes:40 early:9:40 --out rows.jsonl

VGGT-1B's shapes with random weights (those of `vggt-int8 bench`), 392 x 518 images, cameras, depth and points. A way is
`exact`, `keyframes:K`, `frames`, or `early:N:K`: the first N layers inside frames, key frames in the others (`early:N`:
exact in the others). --cap GB limits what PyTorch may allocate, model and images included. --profile prints the kernels
of one call. A row holds milliseconds (median of CUDA events around --repeats calls, after one to warm up), and the peak
of allocated and reserved memory in GiB.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vggt_int8 import VGGTInt8
from vggt_int8.bench.source import load_source
from vggt_int8.bench.variants import find_variant
from vggt_int8.files import append_json_line

SIZE = (392, 518)
GIB = 2**30


def attention_of(way: str, depth: int) -> dict[str, Any]:
    """The keywords of a call. Raises ValueError for a way that is none."""
    name, *numbers = way.split(":")
    match name, [int(number) for number in numbers]:
        case "exact" | "frames", []:
            return {"global_attention": name}
        case "keyframes", [keyframes]:
            return {"global_attention": name, "keyframes": keyframes}
        case "early", [layers]:
            return {"global_attention": ["frames"] * layers + ["exact"] * (depth - layers)}
        case "early", [layers, keyframes]:
            return {
                "global_attention": ["frames"] * layers + ["keyframes"] * (depth - layers),
                "keyframes": keyframes,
            }
    raise ValueError(f"{way!r} is no way: exact, frames, keyframes:K, early:N or early:N:K")


def timed(model: VGGTInt8, images: Tensor, keywords: dict[str, Any], repeats: int) -> list[float]:
    """Milliseconds of each of `repeats` calls; outputs are dropped between them."""
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        model(images, check_finite=False, **keywords)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return times


def measure(model: VGGTInt8, frames: int, way: str, repeats: int, profile: bool) -> dict[str, Any]:
    keywords = attention_of(way, model.config.depth)
    images = torch.rand(frames, 3, *SIZE, device="cuda")
    model(images, check_finite=False, **keywords)
    torch.cuda.reset_peak_memory_stats()
    times = timed(model, images, keywords, repeats)
    peak = torch.cuda.max_memory_allocated() / GIB, torch.cuda.max_memory_reserved() / GIB
    report = model.runtime_report()
    row = {
        "frames": frames,
        "way": way,
        "ms": round(statistics.median(times), 1),
        "times": [round(t, 1) for t in times],
    }
    row |= {"allocated_gib": round(peak[0], 2), "reserved_gib": round(peak[1], 2), "mode": report.mode}
    if profile:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiled:
            model(images, check_finite=False, **keywords)
            torch.cuda.synchronize()
        print(profiled.key_averages().table(sort_by="cuda_time_total", row_limit=40, max_name_column_width=70))
    model.runtime.reset()
    return row | {"plan": str(report.plan)}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[100, 200])
    parser.add_argument("--ways", nargs="+", default=["exact", "keyframes:40"])
    parser.add_argument("--recipe", default="int8_dynamic")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cap", type=float, help="GB (1e9 bytes) that PyTorch may allocate")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--out", type=Path, help="file to append JSON lines to")
    arguments = parser.parse_args()
    device = torch.device("cuda", torch.cuda.current_device())
    source = load_source("random:vggt-1b", device)
    model = find_variant(f"{arguments.recipe}:native").build(source, device).model
    assert isinstance(model, VGGTInt8)
    if arguments.cap is not None:
        torch.cuda.empty_cache()
        fraction = arguments.cap * 1e9 / torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(fraction)
    facts = {"recipe": arguments.recipe, "gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    for frames in arguments.frames:
        for way in arguments.ways:
            row = facts | {"cap_gb": arguments.cap}
            row |= measure(model, frames, way, arguments.repeats, arguments.profile)
            print(row, flush=True)
            if arguments.out:
                append_json_line(arguments.out, row)


if __name__ == "__main__":
    main()
