"""Where the runtime's time goes, part by part, and what its choices are worth, on this GPU.

    python benchmarks/runtime_parts.py --frames 1 10 --out benchmarks/results/runtime_parts.jsonl

VGGT-1B's shapes with random weights. Parts: one block of each kind (times 24), attention by each kernel on the layout
that the blocks hand it, a dense head with cuDNN's tuning on and off and some frames at a time, the camera head. Each is
timed in a CUDA graph of its own, so launches cost what they cost in the whole; the sum is what the whole should take.
The whole itself comes with and without branches of the graph (`runtime/branches.py`).
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import sdpa_kernel

from vggt_int8 import VGGT, VGGTConfig, quantize
from vggt_int8.files import append_json_line
from vggt_int8.model.call import Call
from vggt_int8.model.tables import rope_table
from vggt_int8.runtime import branches, dense
from vggt_int8.runtime.aggregator import run_aggregator
from vggt_int8.runtime.attention import CUDNN, EFFICIENT, FLASH
from vggt_int8.runtime.blocks import run_block
from vggt_int8.runtime.camera import run_camera_head
from vggt_int8.runtime.kept import Halves
from vggt_int8.runtime.memory import PLANS
from vggt_int8.runtime.network import run_network

SIZE = (392, 518)
GRID = (28, 37)
TOKENS = GRID[0] * GRID[1] + 5
ALL_ROWS = 1 << 30


def milliseconds(call: Callable[[], object], replays: int = 9) -> float:
    """Median over replays of a graph of one call, after two calls to warm up."""
    for _ in range(2):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    times = []
    for _ in range(replays + 1):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times[1:])


def build(recipe: str) -> VGGT:
    with torch.device("cuda"):
        torch.manual_seed(0)
        model = VGGT(VGGTConfig(enable_track=False)).eval().requires_grad_(False)
    quantize(model, recipe, "auto" if recipe == "fp16" else "native")
    return model.to(torch.float16)


def block_times(model: VGGT, frames: int) -> dict[str, float]:
    aggregator = model.aggregator
    x = torch.randn(frames * TOKENS, 1024, device="cuda", dtype=torch.float16)
    rope = rope_table(*GRID, 5, 64, 100.0, device=x.device)
    kinds = {
        "encoder blocks": (aggregator.patch_embed.blocks[0], frames, None),
        "frame blocks": (aggregator.frame_blocks[0], frames, rope),
        "global blocks": (aggregator.global_blocks[0], 1, rope),
    }
    return {
        f"24 {name}": 24 * milliseconds(lambda b=block, s=sequences, r=table: run_block(b, x, s, r, ALL_ROWS))
        for name, (block, sequences, table) in kinds.items()
    }


def attention_times(frames: int) -> dict[str, float]:
    qkv = torch.randn(frames * TOKENS, 3, 16, 64, device="cuda", dtype=torch.float16)
    times = {}
    for name, sequences in (("frame", frames), ("global", 1)):
        q, k, v = qkv.unflatten(0, (sequences, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        for kernel in (CUDNN, FLASH, EFFICIENT):
            with sdpa_kernel(kernel):
                times[f"24 {name} attention, {kernel.name.split('_')[0].lower()}"] = 24 * milliseconds(
                    lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v)
                )
    return times


def head_times(model: VGGT, frames: int) -> dict[str, float]:
    half = torch.randn(frames, TOKENS, 1024, device="cuda", dtype=torch.float16)
    tokens = {layer: Halves.whole(half, half) for layer in model.config.dpt_layers}
    times = {}
    for tuned in (True, False):
        with torch.backends.cudnn.flags(enabled=True, benchmark=tuned):
            for at_once in sorted({min(n, frames) for n in (1, 4, 8, 16)}):
                name = f"point head, {at_once} at once, tuning {'on' if tuned else 'off'}"
                times[name] = milliseconds(lambda n=at_once: dense.predict(model.point_head, tokens, SIZE, n, False))
    camera = torch.randn(1, frames, 2048, device="cuda", dtype=torch.float16)
    times["camera head"] = milliseconds(lambda: run_camera_head(model.camera_head, camera))
    return times


def whole_times(model: VGGT, frames: int) -> dict[str, float]:
    images = torch.rand(1, frames, 3, *SIZE, device="cuda")
    call, plan = Call.of(model, images, heads=("camera", "depth", "point")), replace(PLANS[0], in_pieces=False)
    asked = (images, model.config.dpt_layers, call.attention, plan)
    times = {"aggregator": milliseconds(lambda: run_aggregator(model.aggregator, *asked))}
    before = branches.BRANCHES
    for branched in (False, True):
        branches.BRANCHES = branched
        name = f"whole, heads {'branch' if branched else 'in order'}"
        times[name] = milliseconds(lambda: run_network(model, call, plan))
    branches.BRANCHES = before
    return times


MEASURES: dict[str, Callable[[VGGT, int], dict[str, float]]] = {
    "blocks": block_times,
    "heads": head_times,
    "whole": whole_times,
    "attention": lambda _, frames: attention_times(frames),
}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--recipes", nargs="+", default=["int8_dynamic", "fp16"])
    parser.add_argument("--parts", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--out", type=Path, help="file to append JSON lines to")
    arguments = parser.parse_args()
    for recipe in arguments.recipes:
        model = build(recipe)
        for frames in arguments.frames:
            parts: dict[str, float] = {}
            for name in arguments.parts:
                if name != "attention" or recipe == arguments.recipes[0]:  # which is the same for all
                    parts |= MEASURES[name](model, frames)
            print(f"\n{recipe}, {frames} frames, ms")
            for name, ms in parts.items():
                print(f"{ms:9.3f}  {name}")
            if arguments.out:
                row = {"recipe": recipe, "frames": frames, "gpu": torch.cuda.get_device_name(), "ms": parts}
                append_json_line(arguments.out, row)
        del model


if __name__ == "__main__":
    main()
