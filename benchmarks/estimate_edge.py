"""Checks `vggt-int8 estimate` at its limits: do as many frames as it promises for a card fit, and how much is left?

    python -m benchmarks.estimate_edge --memory-gb 8 12 --keyframes 40 --out rows.jsonl

VGGT-1B's shapes with random weights, 392 x 518 images, cameras, depth and points. For each card size, PyTorch's
allocator is capped at that size minus what the estimate reserves for the CUDA context. Two calls are run: with the most
frames that need no offloading ("on_gpu"), and with the most frames at all ("most").

A row holds the estimated memory, the peaks of allocated and reserved memory, and `context_gib`, the used GPU memory
that PyTorch did not reserve; on an otherwise idle GPU this is the context, for which the estimate reserves 600 MiB.
`ran` is false if memory ran out. `plan_after` is the plan that ran, if it differs from the estimated one.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.long_scenes import GIB, SIZE, build
from vggt_int8 import VGGTInt8
from vggt_int8.bench.timing import release
from vggt_int8.export.report import describe_machine, installed_versions
from vggt_int8.files import append_json_line
from vggt_int8.runtime.fits import CONTEXT, Question, cards_with


def gib(count: int) -> float:
    return round(count / GIB, 3)


def run(model: VGGTInt8, question: Question, frames: int, memory: int) -> dict[str, Any]:
    """Run one call with this number of frames on a card of `memory` bytes, and return its row."""
    need = question.need(frames, memory)
    release(model.device)
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((memory - CONTEXT) / total)
    torch.cuda.reset_peak_memory_stats()
    start, ran = time.perf_counter(), True
    try:
        images = torch.rand(frames, 3, *question.size, device=model.device)
        output = model(images, check_finite=False, **asked(question.keyframes))
        torch.cuda.synchronize()
        del output, images
    except torch.OutOfMemoryError as error:
        print(error, flush=True)
        ran = False
    seconds = time.perf_counter() - start
    free, _ = torch.cuda.mem_get_info()
    context = total - free - torch.cuda.memory_reserved()
    plan = model.runtime_report().plan
    torch.cuda.set_per_process_memory_fraction(1.0)
    return {
        "frames": frames,
        "ran": ran,
        "seconds": round(seconds, 1),
        "estimated_gib": gib(need.total - CONTEXT),
        "allocated_gib": gib(torch.cuda.max_memory_allocated()),
        "reserved_gib": gib(torch.cuda.max_memory_reserved()),
        "context_gib": gib(context),
        "plan": str(need.plan),
        "plan_after": None if plan == need.plan else str(plan),
    }


def asked(keyframes: int | None) -> dict[str, Any]:
    return {} if keyframes is None else {"global_attention": "keyframes", "keyframes": keyframes}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory-gb", type=float, nargs="+", default=[8.0])
    parser.add_argument("--keyframes", type=int, help="number of key frames; by default exact attention (slow)")
    parser.add_argument("--kinds", nargs="+", choices=("on_gpu", "most"), default=["on_gpu", "most"])
    parser.add_argument("--recipe", default="int8_rotated")
    parser.add_argument("--out", type=Path, help="file to append JSON lines to")
    arguments = parser.parse_args()
    model = build(arguments.recipe)
    weights = sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
    question = Question(model.config, weights, SIZE, arguments.keyframes)
    facts = {"recipe": arguments.recipe, "keyframes": arguments.keyframes, "size": [*SIZE], "weights_gib": gib(weights)}
    facts |= {"machine": describe_machine(model.device), "versions": installed_versions()}
    for name, memory in cards_with(arguments.memory_gb):
        counts = {"on_gpu": question.frames_on_gpu(memory), "most": question.most_frames(memory)}
        for kind in arguments.kinds:
            row = {"memory_gb": name, "kind": kind, **run(model, question, counts[kind], memory)}
            print(row, flush=True)
            if arguments.out:
                append_json_line(arguments.out, facts | row)


if __name__ == "__main__":
    main()
