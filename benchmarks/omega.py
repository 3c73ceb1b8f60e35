"""Time and memory of VGGT-Omega: fused, as plain compiled bf16, and the public code beside it, in one run.

    python benchmarks/omega.py --frames 1 10 32 100 --out benchmarks/results/omega.jsonl [--public FOLDER]

Sizes of the public 512 checkpoint with random weights, images of 416 x 624, cameras and depth. A row is the median of
several synchronised calls after those that compile and capture, and the peak of GPU memory, weights included.
`--public` is a checkout of the public code, which is run as its README shows (bf16 autocast inside).
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vggt_int8 import VGGTOmegaConfig, VGGTOmegaInt8, quantize
from vggt_int8.bench.timing import release
from vggt_int8.export.report import describe_machine, installed_versions
from vggt_int8.files import append_json_line

SIZE = (416, 624)
CALLS = 5
ENOUGH = 6.0  # seconds of calls after which a row has enough of them


def network(dtype: torch.dtype, recipe: str | None) -> VGGTOmegaInt8:
    """Random weights, drawn so that every branch contributes."""
    with torch.device("cuda"):
        torch.manual_seed(0)
        model = VGGTOmegaInt8(VGGTOmegaConfig()).eval().requires_grad_(False)
    model.to(dtype)
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            nn.init.uniform_(parameter, 0.05, 0.2)
    if recipe is not None:
        quantize(model, recipe)
    model.set_runtime("on")
    return model


def compiled() -> VGGTOmegaInt8:
    """bf16 on the network's modules, its blocks and the depth head's fusion compiled."""
    model = network(torch.bfloat16, None)
    model.set_runtime("off")
    aggregator = model.aggregator
    blocks = [*aggregator.patch_embed.blocks, *aggregator.frame_blocks, *aggregator.inter_frame_blocks]
    torch._dynamo.config.recompile_limit = 64
    for block in [*blocks, model.dense_head.scratch]:
        block.compile(dynamic=False)
    return model


def public(folder: Path) -> nn.Module:
    sys.path.insert(0, str(folder))
    from vggt_omega.models import VGGTOmega  # type: ignore[import-not-found]

    with torch.device("cuda"):
        torch.manual_seed(0)
        model: nn.Module = VGGTOmega().eval().requires_grad_(False)
    model.cuda()  # tables that are made on the CPU, too
    for module in model.modules():
        mask = module._buffers.get("bias_mask")
        if mask is not None:  # NaN until weights are loaded
            mask.copy_(torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(len(mask) // 3))
    return model


def variants(folder: Path | None) -> Iterator[tuple[str, Callable[[], nn.Module], tuple[dict[str, Any], ...]]]:
    """Name, model, and the keywords of its calls."""
    keyframes = {"global_attention": "keyframes"}
    yield "int8_dynamic", lambda: network(torch.float16, "int8_dynamic"), ({}, keyframes)
    if folder is not None:
        yield "public code", lambda: public(folder), ({},)
    yield "fp16 fused", lambda: network(torch.float16, None), ({},)
    yield "int8_rotated", lambda: network(torch.float16, "int8_rotated"), ({},)
    yield "bf16 compiled", compiled, ({},)


def timed(call: Callable[[], Any]) -> tuple[float, int, float]:
    """Median milliseconds, calls, and peak GiB."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    times: list[float] = []
    while len(times) < CALLS and (sum(times) < ENOUGH or len(times) < 3):
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times), len(times), torch.cuda.max_memory_allocated() / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[1, 10, 32, 100])
    parser.add_argument("--variants", nargs="+", default=None)
    parser.add_argument("--public", type=Path, default=None)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    append_json_line(asked.out, {**describe_machine(torch.device("cuda")), "versions": installed_versions()})
    for name, build, keywords in variants(asked.public):
        if asked.variants and name not in asked.variants:
            continue
        model = build()
        for frames in asked.frames:
            images: Tensor = torch.rand(
                frames, 3, *SIZE, device="cuda", generator=torch.Generator("cuda").manual_seed(1)
            )
            for options in keywords:
                if frames <= 40 if options else frames > 200:  # nothing to choose from, or minutes
                    continue
                torch.cuda.empty_cache()
                with torch.inference_mode():
                    ms, calls, gib = timed(lambda m=model, x=images, o=options: m(x, **o))
                row = {"variant": name, "frames": frames, **options, "ms": round(ms, 2), "gib": round(gib, 2)}
                append_json_line(asked.out, {**row, "calls": calls})
                print(row, flush=True)
        del model
        torch._dynamo.reset()
        release(torch.device("cuda"))


if __name__ == "__main__":
    main()
