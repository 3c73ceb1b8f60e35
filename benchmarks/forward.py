"""Time and memory of VGGT-1B's whole forward pass (cameras, depth, points) on one GPU, for several ways to run it.

    python benchmarks/forward.py --frames 1 10 32 --out benchmarks/results/forward.jsonl

Random weights of VGGT-1B's shapes, since timing does not depend on their values; every variant computes from the same
ones, and its outputs are compared with fp32. First a card of what the work costs and what this GPU can do, then one
row per variant and frame count; each row goes to `--out` as one JSON line with versions and GPU. A row whose outputs
are too far from fp32 says so and shows no time. `--profile` also writes each row's kernels, by time, to a file.

    python benchmarks/forward.py --frames 1000 --variants int8_dynamic:native --memory-gb 24 --seconds 0
"""

import argparse
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import vggt_int8
from vggt_int8 import VGGT, VGGTConfig, VGGTInt8, quantize
from vggt_int8.eval.compare import difference
from vggt_int8.export.report import installed_versions
from vggt_int8.model import VGGTOutput

VARIANTS = {
    "bf16-autocast": ("autocast", "", ""),
    "bf16": ("bf16", "", ""),
    "fp16": ("fp16", "", ""),
    "bf16-compiled": ("compiled", "", ""),
    "int8_dynamic:bitsandbytes": ("int8", "int8_dynamic", "bitsandbytes"),
    "int8_dynamic:torchao": ("int8", "int8_dynamic", "torchao"),
    "int8_weight_only:torchao": ("int8", "int8_weight_only", "torchao"),
    "llm_int8:bitsandbytes": ("int8", "llm_int8", "bitsandbytes"),
    "fp16:native": ("native", "fp16", "auto"),
    "int8_weight_only:native": ("native", "int8_weight_only", "native"),
    "int8_dynamic:native": ("native", "int8_dynamic", "native"),
}
LIMIT = 0.1  # relative error against fp32 above which a result counts as wrong
COMPARED = ("pose_enc", "depth", "world_points")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[1, 2, 4, 10, 32])
    parser.add_argument("--size", type=int, nargs=2, default=[392, 518], metavar=("H", "W"))
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seconds", type=float, default=1.0, help="timed work per row")
    parser.add_argument("--out", type=Path, help="file to append JSON lines to")
    parser.add_argument("--profile", type=Path, help="folder for a table of kernels per row")
    parser.add_argument("--memory-gb", type=float, help="run as on a card of so many GB; no comparison with fp32")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this benchmark needs a CUDA device")
    facts = {"gpu": torch.cuda.get_device_name(), "versions": installed_versions(), "python": platform.python_version()}
    print_cost_card(arguments.frames, tuple(arguments.size))
    release()
    expected: dict[int, dict[str, Tensor]] = {}
    if arguments.memory_gb is None:
        fp32 = build("fp32")
        expected = {frames: run(fp32, images(frames, arguments.size)) for frames in arguments.frames}
        del fp32
        release()
    titles = f"{'ms':>9s} {'p20-p80':>15s} {'first s':>8s} {'peak GiB':>9s} {'rel. error':>10s}"
    print(f"{'variant':26s} {'frames':>6s} {titles}")
    for variant in arguments.variants:
        model = build(*VARIANTS[variant])
        if arguments.memory_gb is not None:
            limit_memory(arguments.memory_gb)
        for frames in arguments.frames:
            pixels = images(frames, arguments.size)
            row = measure(model, VARIANTS[variant][0], pixels, expected.get(frames), arguments)
            if arguments.profile:
                profile(model, VARIANTS[variant][0], pixels, arguments.profile / f"{variant}.{frames}.txt")
            row = {"variant": variant, "frames": frames, "size": arguments.size, **row, **facts}
            show(row)
            if arguments.out:
                with arguments.out.open("a") as handle:
                    handle.write(json.dumps(row) + "\n")
        del model
        release()


def weights() -> dict[str, Tensor]:
    """VGGT-1B's tensors on the CPU, drawn so that every branch of the network contributes."""
    with torch.device("cuda"):
        torch.manual_seed(0)
        model = VGGT(VGGTConfig(enable_track=False))
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                nn.init.uniform_(parameter, 0.05, 0.2)
            elif name.endswith(("_token", "_tokens")):
                nn.init.normal_(parameter, std=0.3)
    return {name: tensor.cpu() for name, tensor in model.state_dict().items()}


def build(kind: str, recipe: str = "", backend: str = "") -> nn.Module:
    """The network in one of the ways of `VARIANTS`, on the GPU, from the same weights each time."""
    global _WEIGHTS
    if _WEIGHTS is None:
        _WEIGHTS = weights()
    with torch.device("meta"):
        model = VGGTInt8(VGGTConfig(enable_track=False))
    model.load_state_dict(_WEIGHTS, assign=True)
    model = model.eval().requires_grad_(False)
    if kind in ("int8", "native"):
        # Layer by layer on the GPU, as from_pretrained does: the fp32 model must not be part of the peak.
        for child in model.children():
            child.half()
        quantize(model.cuda(), recipe, backend)
    dtype = {"bf16": torch.bfloat16, "compiled": torch.bfloat16, "fp16": torch.float16}.get(kind)
    model = model.to("cuda", dtype) if dtype else model.cuda()
    if kind == "native":
        model.set_runtime("on")
    if kind == "compiled":
        for blocks in (
            model.aggregator.patch_embed.blocks,
            model.aggregator.frame_blocks,
            model.aggregator.global_blocks,
        ):
            for block in blocks:
                block.compile()
    release()
    return model


_WEIGHTS: dict[str, Tensor] | None = None


def images(frames: int, size: list[int]) -> Tensor:
    return torch.rand(frames, 3, *size, generator=torch.Generator().manual_seed(frames)).cuda()


@torch.inference_mode()
def forward(model: nn.Module, pixels: Tensor, kind: str = "") -> VGGTOutput:
    with torch.autocast("cuda", torch.bfloat16, enabled=kind == "autocast"):
        return model(pixels, check_finite=False)


def run(model: nn.Module, pixels: Tensor, kind: str = "") -> dict[str, Tensor]:
    output = forward(model, pixels, kind)
    return {name: output[name].cpu() for name in COMPARED}


def measure(
    model: nn.Module, kind: str, pixels: Tensor, expected: dict[str, Tensor] | None, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Error against fp32, then median time (CUDA events) and peak memory with the weights.

    The peak covers all calls but the first, in which compilers and tuners may take memory that no later call needs;
    a CUDA graph is captured after the first call, so its memory counts.
    """
    release()
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    got = run(model, pixels, kind)
    first = {"first_s": time.perf_counter() - start, "first_peak_gib": torch.cuda.max_memory_allocated() / 2**30}
    errors = {}
    if expected is not None:
        errors = {name: difference(expected[name], got[name])["relative"] for name in COMPARED}
        if not max(errors.values()) < LIMIT:
            return {"errors": errors, "failed": f"relative error above {LIMIT}", **first}
    del got
    mode = model.runtime_report().mode if isinstance(model, VGGTInt8) else ""
    if arguments.seconds == 0:
        ms, peak = first["first_s"] * 1e3, first["first_peak_gib"]
        return {"errors": errors, "ms": ms, "runs": 1, "peak_gib": peak, "mode": mode, **first}

    def step() -> None:
        forward(model, pixels, kind)

    torch.cuda.reset_peak_memory_stats()
    times = timed(step, arguments.seconds)
    cuts = statistics.quantiles(times, n=5)
    return {
        "errors": errors,
        "ms": statistics.median(times),
        "ms_p20": cuts[0],
        "ms_p80": cuts[3],
        "runs": len(times),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "reserved_gib": torch.cuda.max_memory_reserved() / 2**30,
        "mode": model.runtime_report().mode if isinstance(model, VGGTInt8) else "",
        **first,
    }


def profile(model: nn.Module, kind: str, pixels: Tensor, file: Path) -> None:
    """Write the kernels of one warm call, by their time, to `file`."""
    forward(model, pixels, kind)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        forward(model, pixels, kind)
        torch.cuda.synchronize()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_device_time_total)
    total = sum(event.self_device_time_total for event in events)
    lines = [f"{total / 1e3:.2f} ms of kernels", f"{'ms':>9s} {'share':>6s} {'calls':>6s} {'us each':>8s}  kernel"]
    for event in events:
        share, each = event.self_device_time_total / total, event.self_device_time_total / event.count
        lines.append(
            f"{event.self_device_time_total / 1e3:9.3f} {share:6.1%} {event.count:6d} {each:8.1f}  {event.key[:160]}"
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n")


def limit_memory(gigabytes: float) -> None:
    """Let this process take no more than `gigabytes` (1e9 bytes) of the GPU, what it holds included."""
    release()
    torch.cuda.set_per_process_memory_fraction(gigabytes * 1e9 / torch.cuda.mem_get_info()[1])


def timed(step: Callable[[], None], seconds: float) -> list[float]:
    """Milliseconds per call after warming up, each by a pair of CUDA events."""
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    times: list[float] = []
    while len(times) < 5 or sum(times) < seconds * 1e3:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        step()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return times


def print_cost_card(frames: list[int], size: tuple[int, int]) -> None:
    """Operations and bytes of the work, and the two ceilings of this GPU, measured."""
    config = VGGTConfig()
    width, patches = config.embed_dim, (size[0] // config.patch_size) * (size[1] // config.patch_size)
    tokens = patches + 1 + config.num_register_tokens
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    matmul = statistics.median(timed(lambda: a @ a, 0.3))
    source = torch.empty(2**30, device="cuda", dtype=torch.uint8)
    copy = statistics.median(timed(lambda: source.clone(), 0.2))
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, vggt-int8 {vggt_int8.__version__}")
    print(f"ceilings: {2 * 8192**3 / matmul / 1e9:.0f} TFLOP/s bf16, {2 * 2**30 / copy / 1e9:.2f} TB/s copy")
    for s in frames:
        linears = 2 * 12 * width**2 * tokens * s * 72
        attention = 4 * width * (tokens**2 * s * 48 + (tokens * s) ** 2 * 24)
        floor = (linears + attention) / (2 * 8192**3 / matmul)
        print(
            f"{s:4d} frames: linears {linears / 1e12:.2f} TFLOP, attention {attention / 1e12:.2f}; "
            f"bf16 floor {floor:.1f} ms"
        )


def show(row: dict[str, Any]) -> None:
    error = max(row["errors"].values(), default=float("nan"))
    if "failed" in row:
        print(f"{row['variant']:26s} {row['frames']:6d}   {row['failed']} ({error:.3f})")
        return
    spread = f"{row['ms_p20']:.1f}-{row['ms_p80']:.1f}" if "ms_p20" in row else ""
    print(
        f"{row['variant']:26s} {row['frames']:6d} {row['ms']:9.2f} {spread:>15s} {row['first_s']:8.1f} "
        f"{row['peak_gib']:9.2f} {error:10.5f}",
        flush=True,
    )


def release() -> None:
    gc.collect()
    torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
