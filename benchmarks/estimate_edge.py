"""Whether `vggt-int8 estimate` is right at the edge: as many frames as it says fit into a card, on this GPU, capped.

    python -m benchmarks.estimate_edge --memory-gb 8 12 --keyframes 40 --out rows.jsonl

VGGT-1B's shapes with random weights, 392 x 518 images, cameras, depth and points. For each size of card PyTorch may
allocate that size less what is set aside for CUDA; then the most frames that stay on the GPU are run, and the most that
run at all. A row holds the estimate, the peak of allocated and reserved memory, and what is used of the GPU beside what
PyTorch reserved: alone on the card, the context for which the estimate sets 600 MiB aside. `ran`: false if memory ran
out; `plan_after`: the plan that ran, if it is not the one that was estimated.
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
    """A row: one call of so many frames on a card of so many bytes."""
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
    parser.add_argument("--keyframes", type=int, help="global attention to so many; by default exact, which takes long")
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
