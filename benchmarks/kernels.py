"""The CUDA kernels on this GPU: correctness, bandwidth of the passes, weight-only linears, then a sweep of GEMM tiles.

    python benchmarks/kernels.py --out results/kernels [--seconds 240] [--frames 10 1 4 32 100] [--no-checks]

Writes `kernels.jsonl` (one measurement per line) and `tiles.json` (the best tile per size, for
VGGT_INT8_TILES) under --out. Ceilings are measured first, on the same card: a large copy in bytes read plus
written, and a bf16 product. All kernels are timed as the network meets them (see
`vggt_int8/kernels/cuda/tune.py`), cuBLAS too; its time is that of the plain linear with bias, while the INT8 times
include scales, GELU, LayerScale and residual. No ratio is printed for what failed its check.
"""

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import triton

from vggt_int8.files import append_json_line
from vggt_int8.kernels.cuda import (
    tiles,
    triton_attention,
    triton_gemm,
    triton_norm,
    triton_predict,
    triton_product,
    triton_resize,
    triton_rope,
    triton_weight_only,
    tune,
)
from vggt_int8.kernels.cuda.launch import compiling
from vggt_int8.kernels.cuda.tiles import Size, Tile
from vggt_int8.kernels.epilogue import Epilogue
from vggt_int8.machine import processors

REPOSITORY = Path(__file__).resolve().parent.parent
C, HEADS = 1024, 16
CAMERA_LINEARS = ((6144, 2048), (2048, 2048), (8192, 2048), (2048, 8192))  # N, K


class Log:
    """Appends measurements to a JSON-lines file, each with the machine it was made on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        device = torch.cuda.get_device_properties(0)
        self.machine = {
            "gpu": device.name,
            "torch": torch.__version__,
            "triton": triton.__version__,
            "python": platform.python_version(),
            "date": time.strftime("%Y-%m-%d"),
        }

    def write(self, **values: Any) -> None:
        append_json_line(self.path, values | self.machine)


def run_checks() -> bool:
    """The kernels' tests, compiled, in a process of their own."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/kernels/cuda"]
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    lines = (result.stdout + result.stderr).strip().splitlines()
    print("\n".join(lines[-1:] if result.returncode == 0 else lines[-60:]), flush=True)
    return result.returncode == 0


def ceilings(log: Log) -> tuple[float, float]:
    """Measured GB/s of a copy (read plus written) and bf16 TFLOP/s of a large product."""
    source = torch.empty(1 << 31, dtype=torch.int8, device="cuda").random_()
    target = torch.empty_like(source)
    copy = 2 * source.numel() * 1e-6 / tune.time_in_graph([partial(target.copy_, source)] * 3)
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = 2 * 8192**3 * 1e-9 / tune.time_in_graph([partial(torch.matmul, a, b)] * 5)
    log.write(kind="ceiling", copy_gb_s=copy, bf16_tflops=product)
    print(f"ceilings: copy {copy:.0f} GB/s, bf16 product {product:.0f} TFLOP/s", flush=True)
    return copy, product


def row_passes(log: Log, copy: float) -> None:
    """Bytes are the fewest possible: each input read once, each output written once."""
    print(f"\n{'pass':28s}{'M':>8s}{'us':>9s}{'GB/s':>8s}{'of copy':>9s}")
    for m in (1041, 10410, 33312):
        sets = max(2, min(24, (160 << 20) // (m * C * 2)))
        half = partial(torch.randn, device="cuda", dtype=torch.float16)
        xs = [half(m, C) for _ in range(sets)]
        hidden = [half(m, 4 * C) for _ in range(max(2, sets // 4))]
        qkv = [half(m, 3, HEADS, C // HEADS) for _ in range(max(2, sets // 3))]
        vector, head = half(C), half(C // HEADS)
        rope = torch.randn(2, 1041, C // HEADS, device="cuda")
        passes: dict[str, tuple[int, list[Any]]] = {
            "LayerNorm to codes": (
                3 * C,
                [partial(triton_norm.layer_norm_quantize, x, vector, vector, 1e-5) for x in xs],
            ),
            "quantize 1024": (3 * C, [partial(triton_norm.quantize_rows, x) for x in xs]),
            "quantize 4096": (12 * C, [partial(triton_norm.quantize_rows, x) for x in hidden]),
            "q/k norm, RoPE": (
                8 * C,
                [partial(triton_rope.qk_norm_rope_, t, head, head, head, head, rope, 1e-5) for t in qkv],
            ),
        }
        for name, (bytes_per_row, calls) in passes.items():
            ms = tune.time_in_graph(calls)
            rate = m * bytes_per_row * 1e-6 / ms
            log.write(kind="row pass", name=name, m=m, ms=ms, gb_s=rate, copy_gb_s=copy)
            print(f"{name:28s}{m:8d}{ms * 1e3:9.1f}{rate:8.0f}{rate / copy:9.0%}", flush=True)


def results_to_codes(log: Log) -> None:
    """What makes a linear's input of VGGT-1B, to codes: dynamic scales in two kernels, static ones in one, for every
    token of a frame. Microseconds, and the plain result in fp16.
    """
    print(f"\n{'results to codes':28s}{'M':>8s}{'fp16':>9s}{'dynamic':>9s}{'static':>9s} us")
    scale = torch.linspace(0.01, 0.02, 1041, device="cuda")
    for frames in (1, 10, 32):
        data = tune.operands(tune.LINEARS[2], frames * 1041)
        ways: dict[str, list[list[Any]]] = {}
        for name, rotation in (("fc1, GELU", 0), ("fc1, GELU, rotated", 256)):
            floats = Epilogue(data.bias, torch.float16, gelu=True)
            codes, dynamic = triton_product.int8_gemm_quantize, floats._replace(rotation=rotation)
            makers = (triton_gemm.int8_gemm, floats), (codes, dynamic), (codes, dynamic._replace(out_scale=scale))
            ways[name] = [
                [partial(make, data.x, data.x_scale, w, data.weight_scale, end) for w in data.weights]
                for make, end in makers
            ]
        qkv = torch.randn(frames, 1041, 3, HEADS, C // HEADS, device="cuda", dtype=torch.float16)
        heads = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attend = partial(triton_attention.float_attention, *heads)
        ways["attention in frames"] = [
            [attend],
            [lambda attend=attend: triton_norm.quantize_rows(attend().flatten(0, 1))],
            [partial(triton_attention.float_attention_quantize, *heads, scale)],
        ]
        for name, calls in ways.items():
            us = [tune.time_in_graph(way) * 1e3 for way in calls]
            log.write(kind="to codes", name=name, m=frames * 1041, fp16_us=us[0], dynamic_us=us[1], static_us=us[2])
            print(f"{name:28s}{frames * 1041:8d}" + "".join(f"{value:9.1f}" for value in us), flush=True)


def dense_passes(log: Log, copy: float) -> None:
    """Passes of a dense head at 5 frames of 392 x 518, beside what PyTorch takes for the resize alone."""
    half = partial(torch.randn, device="cuda", dtype=torch.float16)
    frames, tokens = 5, 1041
    print(f"\n{'dense head, 5 frames':28s}{'MB':>8s}{'us':>9s}{'GB/s':>8s}{'of copy':>9s}{'PyTorch us':>12s}")
    calls: dict[str, tuple[list[Any], list[Any] | None]] = {}
    for (h, w), (height, width), c, kind in (
        ((28, 37), (56, 74), 256, "add"),
        ((56, 74), (112, 148), 256, "add"),
        ((112, 148), (224, 296), 256, ""),
        ((224, 296), (392, 518), 128, "embed"),
        ((28, 37), (28, 37), 1024, "embed"),
    ):
        maps = [half(frames, h, w, c) for _ in range(3)]
        extra: dict[str, torch.Tensor] = {}
        if kind == "add":
            extra = {"addend": half(frames, height, width, c)}
        if kind == "embed":
            extra = {"columns": torch.randn(width, c // 2, device="cuda")}
            extra |= {"rows": torch.randn(height, c // 2, device="cuda")}
        resize = [partial(triton_resize.resize, x, height, width, **extra) for x in maps]
        plain = partial(F.interpolate, size=(height, width), mode="bilinear", align_corners=True)
        library = None if h == height else [partial(plain, x.permute(0, 3, 1, 2)) for x in maps]
        calls[f"resize {h}x{w} to {height} {kind}".strip()] = (resize, library)
    pairs = [(half(frames, tokens, C), half(frames, tokens, C)) for _ in range(3)]
    vector = half(2 * C)
    norms = [partial(triton_norm.layer_norm_halves, a, b, 5, vector, vector, 1e-5) for a, b in pairs]
    cats = [partial(lambda a, b: F.layer_norm(torch.cat([a[:, 5:], b[:, 5:]], -1), (2 * C,)), a, b) for a, b in pairs]
    calls["LayerNorm of two halves"] = norms, cats
    pixels = [half(frames, 392, 518, 32) for _ in range(3)]
    values, confidence = (torch.empty(frames, 392, 518, *n, device="cuda") for n in ((3,), ()))
    last = (half(4, 32), half(4), True, values, confidence)
    calls["predict, 4 outputs"] = [partial(triton_predict.predict_, x, *last) for x in pixels], None
    for a, b, t in ((1024, 1024, 9), (256, 256, 9), (4096, 1024, 1)):
        codes = [torch.randint(-127, 128, (a, b, t), device="cuda", dtype=torch.int8) for _ in range(4)]
        scale = torch.rand(a, 1, 1, device="cuda")
        decode = [partial(triton_weight_only.dequantize, x, scale, torch.float16) for x in codes]
        library = [partial(lambda x, scale=scale: (x.float() * scale).half(), x) for x in codes]
        calls[f"decode {a} x {b} x {t}"] = decode, library
    for name, (own, library) in calls.items():
        inputs = [x for x in (*own[0].args, *own[0].keywords.values()) if isinstance(x, torch.Tensor)]
        result = own[0]()
        moved = sum(x.numel() * x.element_size() for x in (*inputs, *([] if result is None else [result])))
        ms = tune.time_in_graph(own)
        other = None if library is None else tune.time_in_graph(library) * 1e3
        log.write(kind="dense pass", name=name, bytes=moved, ms=ms, library_us=other, copy_gb_s=copy)
        rate = moved * 1e-6 / ms
        beside = f"{other:12.1f}" if other else ""
        print(f"{name:28s}{moved * 1e-6:8.1f}{ms * 1e3:9.1f}{rate:8.0f}{rate / copy:9.0%}{beside}", flush=True)


def weight_only(log: Log, copy: float) -> None:
    """Few rows: the weight's bytes are the floor. The shipped choice, and the best of some others."""
    columns = f"{'M':>8s}{'us':>9s}{'GB/s':>8s}{'of copy':>9s}{'bf16 us':>9s}"
    print(f"\n{'weight-only, N x K':28s}{columns}  best tile, us")
    for (n, k), m in ((shape, m) for shape in CAMERA_LINEARS for m in (1, 10, 64)):
        copies = tune.weight_copies(n * k, m)
        weights = [torch.randint(-127, 128, (n, k), device="cuda", dtype=torch.int8) for _ in range(copies)]
        scale = torch.rand(n, 1, device="cuda")
        x = torch.randn(m, k, device="cuda", dtype=torch.float16)
        linear = partial(triton_weight_only.w8a16_linear, x, weight_scale=scale, bias=None)
        table = triton_weight_only.weight_only_tile(m, n, k, processors(x.device))
        shipped = None if m == 1 else table  # one row has a kernel of its own
        choices = list(dict.fromkeys([shipped, table, *other_tiles(table, n, k)]))
        with compiling():
            for tile in choices:
                linear(weight=weights[0], tile=tile)
        times = {t: tune.time_in_graph([partial(linear, weight=w, tile=t) for w in weights]) for t in choices}
        ms, best = times[shipped], min(times, key=lambda tile: times[tile])
        floats = [w.bfloat16() for w in weights]
        bf16 = tune.time_in_graph([partial(F.linear, x.bfloat16(), w) for w in floats])
        rate = n * k * 1e-6 / ms
        for tile, value in times.items():
            log.write(kind="weight only", n=n, k=k, m=m, tile=str(tile or "one row"), ms=value, bf16_ms=bf16)
        shares = f"{rate:8.0f}{rate / copy:9.0%}{bf16 * 1e3:9.1f}"
        print(
            f"{f'{n} x {k}':28s}{m:8d}{ms * 1e3:9.1f}{shares}  {best or 'one row'} {times[best] * 1e3:.1f}", flush=True
        )


def other_tiles(shipped: Tile, n: int, k: int) -> list[Tile]:
    """Narrower and wider pieces, and the reduction in fewer and more parts."""
    found: list[Tile] = []
    multiprocessors = processors(torch.device("cuda", torch.cuda.current_device()))
    for block_n, block_k, stages in ((16, 256, 4), (32, 256, 4), (32, 512, 3), (64, 128, 6), (128, 128, 4)):
        for per_sm in (1, 2, 4):
            split_k = max(1, min(round(per_sm * multiprocessors * block_n / n), k // block_k))
            tile = Tile(shipped.block_m, block_n, block_k, 4, stages, split_k=split_k)
            if tile not in found and (block_k < 512 or tile.block_m <= 32):  # more does not fit into shared memory
                found.append(tile)
    return found


def bf16_ms(linear: tune.Linear, m: int) -> float:
    """cuBLAS: the linear with its bias, nothing else."""
    x = torch.randn(m, linear.k, device="cuda", dtype=torch.bfloat16)
    copies = tune.weight_copies(2 * linear.n * linear.k, m)
    weights = [torch.randn(linear.n, linear.k, device="cuda", dtype=torch.bfloat16) for _ in range(copies)]
    bias = torch.randn(linear.n, device="cuda", dtype=torch.bfloat16)
    return tune.time_in_graph([partial(F.linear, x, weight, bias) for weight in weights])


def sweep(log: Log, out: Path, frames: Sequence[int], deadline: float) -> None:
    print(f"\n{'linear':18s}{'M':>8s}{'bf16':>7s}{'int8':>7s}{'ratio':>7s}  T(FL)OP/s; best tiles, us")
    best: dict[Size, tiles.Tile] = {}
    for m, linear in tune.work(frames):
        if time.monotonic() > deadline:
            print(f"{linear.name:18s}{m:8d}  not reached")
            continue
        base = bf16_ms(linear, m)
        rows = tune.tune(linear, m, deadline)
        shape = {"m": m, "n": linear.n, "k": linear.k}
        log.write(kind="gemm", name=linear.name, tile="bf16 cuBLAS", ms=base, **shape)
        for tile, ms, why in rows:
            log.write(
                kind="gemm",
                name=linear.name,
                tile=str(tile),
                group_m=tile.group_m,
                ms=None if why else ms,
                failed=why,
                **shape,
            )
        good = [(tile, ms) for tile, ms, why in rows if not why]
        for tile, _, why in rows:
            if why.startswith("wrong"):
                print(f"{linear.name:18s}{m:8d}  {tile}: {why}")
        if not good:
            print(f"{linear.name:18s}{m:8d}  nothing ran: {rows[0][2] if rows else 'no time'}")
            continue
        best[Size(m, linear.n, linear.k, linear.residual)] = good[0][0]
        tiles.write(out / "tiles.json", {tune.arch(): best})
        work = 2e-9 * m * linear.n * linear.k
        ranking = ", ".join(f"{tile} g{tile.group_m} {ms * 1e3:.1f}" for tile, ms in good[:2])
        ms = good[0][1]
        line = f"{linear.name:18s}{m:8d}{work / base:7.0f}{work / ms:7.0f}{base / ms:7.2f}  {ranking}"
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for kernels.jsonl and tiles.json")
    parser.add_argument("--seconds", type=float, default=240, help="for everything")
    parser.add_argument("--frames", type=int, nargs="+", default=tune.FRAMES, help="of the sweep of GEMM tiles")
    parser.add_argument("--no-checks", action="store_true", help="leave the tests out; tiles are still checked")
    args = parser.parse_args()
    deadline = time.monotonic() + args.seconds
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    start = time.monotonic()
    log = Log(args.out / "kernels.jsonl")
    print(f"{log.machine}", flush=True)
    green = args.no_checks or run_checks()
    log.write(kind="checks", passed=None if args.no_checks else green, seconds=time.monotonic() - start)
    copy, _ = ceilings(log)
    if green:
        row_passes(log, copy)
        results_to_codes(log)
        dense_passes(log, copy)
        weight_only(log, copy)
    else:
        print("CHECKS FAILED: row passes and weight-only kernels are not timed; GEMM tiles have a check of their own")
    torch.cuda.empty_cache()
    sweep(log, args.out, args.frames, deadline)
    print(f"{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
