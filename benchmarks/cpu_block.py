"""INT8 on a CPU, as a user gets it: a block of VGGT-1B, and the whole embedded model, against fp32 and bf16.

    python benchmarks/cpu_block.py [--threads 2] [--repeats 15] [--out benchmarks/results/cpu/cpu_block.jsonl]

The block is the plain `Block` in fp32 and bf16, and the fused one on INT8 layers (native backend, fp32 around them) at
1041 tokens, one 392 x 518 frame; its layers are as `RECIPES` have them. The model has the sizes of the embedded one and
random weights; it sees 8 frames of 112 x 112 and predicts cameras, depth and points. Variants take turns within each
repeat, so that a busy machine slows all of them alike. Shown are the median and the minimum of the wall-clock time, and
the minimum of the processor time of all threads, in which waiting for the machine does not count; then the medians over
repeats of one recipe's times divided by the other's. The INT8 product is compared with the reference bit for bit, and
each INT8 result by relative error, before anything is timed.
"""

import argparse
import copy
import json
import os
import statistics
import time
import tomllib
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vggt_int8 import VGGTConfig, VGGTInt8, load_recipe, quantize
from vggt_int8.difference import relative_error
from vggt_int8.export.report import installed_versions
from vggt_int8.files import append_json_line
from vggt_int8.kernels import reference
from vggt_int8.kernels.cpu import compiled, matmul, memory
from vggt_int8.machine import cpu_name
from vggt_int8.model.layers import Block
from vggt_int8.model.tables import rope_table
from vggt_int8.quant import Int8Linear
from vggt_int8.runtime.blocks import run_block
from vggt_int8.runtime.memory import Shape, cpu_plan

EMBEDDED = Path(__file__).parent.parent / "vggt_int8" / "assets" / "mini" / "training.toml"
GRID = (28, 37)  # patches of a 392 x 518 frame
LIMIT = 0.05  # relative error against fp32 above which a result counts as wrong
LINEARS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
RECIPES = ("int8_dynamic", "int8_rotated")

Variants = dict[str, Callable[[], Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, help="file to append the JSON line to")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    kept = memory.keep_freed_memory()  # as any fused call does; it serves all variants
    machine = {
        "cpu": cpu_name(),
        "threads": arguments.threads,
        "product": matmul.cpu_int8_kernel(),
        "no_compiled_kernels": compiled.unavailable(),
        "freed_memory_kept": kept,
        "load": os.getloadavg()[0],
        "versions": installed_versions(),
    }
    print(*(f"{name}: {value}" for name, value in machine.items()), sep="\n")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*field of view of 0")  # random weights
        results = {
            "block": measure("VGGT-1B block, 1041 tokens", block_variants(), arguments.repeats),
            "model": measure("embedded model, 8 frames", model_variants(), arguments.repeats),
        }
    row = {**machine, "ms": results}
    print(json.dumps(row))
    if arguments.out is not None:
        append_json_line(arguments.out, row)


def block_variants() -> Variants:
    config = VGGTConfig()
    rope = rope_table(*GRID, 5, config.embed_dim // config.num_heads, config.rope_freq, device=torch.device("cpu"))
    plan = cpu_plan(Shape(1, 1, 392, 518, (), 4), config)
    fp32 = Block(config.embed_dim, config.num_heads, config.mlp_ratio, qk_norm=True).eval().requires_grad_(False)
    bf16 = copy.deepcopy(fp32).bfloat16()
    x = torch.randn(1, rope.shape[1], config.embed_dim)
    x16 = x.bfloat16()
    variants: Variants = {"fp32": lambda: fp32(x, rope), "bf16": lambda: bf16(x16, rope)}
    for recipe in RECIPES:
        int8, rotation = copy.deepcopy(fp32), load_recipe(recipe).rotation
        for name in LINEARS:
            layer = Int8Linear.from_linear(fp32.get_submodule(name), backend="native", rotation=rotation)
            check_product(layer)
            int8.set_submodule(name, layer)
        variants[recipe] = partial(run_block, int8, x[0], 1, rope, plan.rows)
        # LayerScale starts at 0.01: the difference to the input is what the block does.
        check_error(f"block, {recipe}", variants[recipe]() - x[0], fp32(x, rope)[0] - x[0])
    return variants


def model_variants() -> Variants:
    sizes = tomllib.loads(EMBEDDED.read_text(encoding="utf-8"))["model"]
    fp32 = VGGTInt8(VGGTConfig(**sizes)).eval().requires_grad_(False)
    bf16 = copy.deepcopy(fp32).bfloat16()
    images = torch.rand(8, 3, sizes["img_size"], sizes["img_size"])
    want = fp32(images)
    variants: Variants = {"fp32": partial(fp32, images), "bf16": partial(bf16, images)}
    for recipe in RECIPES:
        int8 = quantize(copy.deepcopy(fp32), recipe, "native")
        got = int8(images)
        if int8.runtime_report().mode != "fused":
            raise SystemExit(f"the model does not run fused: {int8.runtime_report()}")
        for name in ("pose_enc", "depth", "world_points"):
            check_error(f"{name}, {recipe}", got[name], want[name])
        variants[recipe] = partial(int8, images)
    return variants


def check_product(layer: Int8Linear) -> None:
    """INT8 must equal the reference exactly before it is timed."""
    codes = torch.randint(-127, 128, (1041, layer.in_features), dtype=torch.int8)
    if not torch.equal(matmul.int8_matmul(codes, layer.codes), reference.int8_matmul(codes, layer.codes)):
        raise SystemExit(f"{matmul.cpu_int8_kernel()} differs from the reference: no timing")


def check_error(name: str, got: Tensor, want: Tensor) -> None:
    error = relative_error(got, want)
    if not error < LIMIT:
        raise SystemExit(f"{name} is off from fp32 by {error:.3f}: no timing")
    print(f"{name}: relative error against fp32 {error:.4f}")


def measure(title: str, variants: Variants, repeats: int) -> dict[str, dict[str, float]]:
    """Times of each variant in ms, run in turns after one untimed round, and printed as a table."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    for i in range(repeats + 1):
        for name, run in variants.items():
            start = time.perf_counter(), time.process_time()
            run()
            if i:
                times[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    results = {}
    print(f"\n{title:30s}{'median ms':>12s}{'minimum':>10s}{'processor':>11s}{'fp32 takes':>12s}")
    for name, pairs in times.items():
        wall, processor = ([1e3 * value for value in values] for values in zip(*pairs, strict=True))
        results[name] = {"median": statistics.median(wall), "min": min(wall), "processor_min": min(processor)}
        ratio = results["fp32"]["median"] / results[name]["median"]
        print(
            f"{name:30s}" + "{median:12.1f}{min:10.1f}{processor_min:11.1f}".format(**results[name]), f"{ratio:10.2f}x"
        )
    pairs = [(b[0] / a[0], b[1] / a[1]) for a, b in zip(*(times[name] for name in RECIPES), strict=True)]
    wall, processor = (statistics.median(ratios) for ratios in zip(*pairs, strict=True))
    print(f"{RECIPES[1]} to {RECIPES[0]}: {wall:.3f}, processor time {processor:.3f}")
    return results


if __name__ == "__main__":
    main()
