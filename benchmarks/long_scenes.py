"""Time and peak memory of long scenes on this GPU: exact global attention, key frames, layers inside frames.

    python benchmarks/long_scenes.py --frames 100 1000 --ways exact keyframes:40 early:9:40 --out rows.jsonl

VGGT-1B's shapes with random weights, 392 x 518 images, cameras, depth and points. A way is `exact`, `keyframes:K`,
`auto:K`, `frames`, or `early:N:K`: the first N layers inside frames, key frames in the others (`early:N`: exact in the
others). --caps 100=4 measures 100 frames once more while PyTorch may allocate no more than 4 GB (1e9 bytes), model and
images included. --profile N prints the kernels of a call of N frames. A row holds milliseconds (median of CUDA events
around --repeats calls, after one to warm up), those after which the host had launched it all (if they are as many, the
host is what was timed), the peak of allocated and reserved memory in GiB, and how often PyTorch asked the driver for
memory in the timed calls.
"""

import argparse
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vggt_int8 import VGGTConfig, VGGTInt8, quantize
from vggt_int8.bench.timing import kernel_table, release
from vggt_int8.files import append_json_line

SIZE = (392, 518)
GIB = 2**30


def attention_of(way: str, depth: int) -> dict[str, Any]:
    """The keywords of a call. Raises ValueError for a way that is none."""
    name, *numbers = way.split(":")
    match name, [int(number) for number in numbers]:
        case "exact" | "frames", []:
            return {"global_attention": name}
        case "keyframes" | "auto", [keyframes]:
            return {"global_attention": name, "keyframes": keyframes}
        case "early", [layers]:
            return {"global_attention": ["frames"] * layers + ["exact"] * (depth - layers)}
        case "early", [layers, keyframes]:
            return {
                "global_attention": ["frames"] * layers + ["keyframes"] * (depth - layers),
                "keyframes": keyframes,
            }
    raise ValueError(f"{way!r} is no way: exact, frames, keyframes:K, auto:K, early:N or early:N:K")


def timed(model: VGGTInt8, images: Tensor, keywords: dict[str, Any], repeats: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each of `repeats` calls on the GPU, and of the host until it has launched them; outputs are
    dropped between them.
    """
    times, host = [], []
    for _ in range(repeats):
        began = time.perf_counter()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        model(images, check_finite=False, **keywords)
        end.record()
        host.append((time.perf_counter() - began) * 1e3)
        end.synchronize()
        times.append(start.elapsed_time(end))
    return times, host


def measure(model: VGGTInt8, frames: int, way: str, repeats: int, cap: float | None) -> dict[str, Any]:
    keywords = attention_of(way, model.config.depth)
    release(model.device)
    if cap is not None:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(cap * 1e9 / total)
    images = torch.rand(frames, 3, *SIZE, device="cuda")
    model(images, check_finite=False, **keywords)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()
    times, host = timed(model, images, keywords, repeats)
    peak = torch.cuda.max_memory_allocated() / GIB, torch.cuda.max_memory_reserved() / GIB
    after, names = torch.cuda.memory_stats(), ("num_device_alloc", "num_device_free", "num_alloc_retries", "num_ooms")
    report = model.runtime_report()
    row = {
        "frames": frames,
        "way": way,
        "ms": round(statistics.median(times), 1),
        "times": [round(t, 1) for t in times],
        "host_ms": [round(t, 1) for t in host],
    }
    row |= {"allocated_gib": round(peak[0], 2), "reserved_gib": round(peak[1], 2), "mode": report.mode}
    model.runtime.reset()
    torch.cuda.set_per_process_memory_fraction(1.0)
    driver = {name: after.get(name, 0) - before.get(name, 0) for name in names}
    return row | {"cap_gb": cap, "driver": driver, "attention": report.attention_in_words, "plan": str(report.plan)}


def kernels(model: VGGTInt8, frames: int, way: str) -> str:
    """A table of the kernels of one warm call."""
    call = partial(model, check_finite=False, **attention_of(way, model.config.depth))
    return kernel_table(call, torch.rand(frames, 3, *SIZE, device="cuda"))


def build(recipe: str, device: str = "cuda") -> VGGTInt8:
    """VGGT-1B's shapes with random weights, without tracks; fp16 on a GPU, fp32 on a CPU."""
    with torch.device(device):
        torch.manual_seed(0)
        model = VGGTInt8(VGGTConfig(enable_track=False)).eval().requires_grad_(False)
    quantize(model, recipe, "native")
    model.set_runtime("on")
    return model if device == "cpu" else model.half()


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="*", default=[100, 200])
    parser.add_argument("--ways", nargs="+", default=["exact", "keyframes:40"])
    parser.add_argument("--recipe", default="int8_dynamic")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--caps", nargs="*", default=[], metavar="FRAMES=GB")
    parser.add_argument("--profile", type=int, nargs="*", default=[], metavar="FRAMES")
    parser.add_argument("--out", type=Path, help="file to append JSON lines to")
    arguments = parser.parse_args()
    caps = {int(frames): float(cap) for frames, cap in (text.split("=") for text in arguments.caps)}
    model = build(arguments.recipe)
    facts = {"recipe": arguments.recipe, "gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    rows = [(frames, None) for frames in arguments.frames] + [*caps.items()]
    for frames, cap in rows:
        for way in arguments.ways:
            row = facts | measure(model, frames, way, arguments.repeats, cap)
            print(row, flush=True)
            if arguments.out:
                append_json_line(arguments.out, row)
    for frames in arguments.profile:
        print(kernels(model, frames, arguments.ways[0]), flush=True)


if __name__ == "__main__":
    main()
