"""The CUDA kernels on this GPU: correctness, then bandwidth of the row passes, then a sweep of GEMM tiles.

    python benchmarks/kernels.py --out results/kernels [--seconds 240] [--no-checks]

Writes `kernels.jsonl` (one measurement per line) and `tiles.json` (the best tile per size, for
VGGT_INT8_TILES) under --out. Ceilings are measured first, on the same card: a large copy in bytes read plus
written, and a bf16 product. All kernels are timed as the network meets them (see
`vggt_int8/kernels/tune.py`), cuBLAS too; its time is that of the plain linear with bias, while the INT8 times
include scales, GELU, LayerScale and residual. No ratio is printed for what failed its check.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import triton

from vggt_int8.kernels import tiles, triton_norm, triton_rope, triton_weight_only, tune
from vggt_int8.kernels.tiles import Size

REPOSITORY = Path(__file__).resolve().parent.parent
C, HEADS = 1024, 16
CAMERA_LINEARS = ((6144, 2048), (2048, 2048), (8192, 2048), (2048, 8192))  # N, K


class Log:
    """Appends measurements to a JSON-lines file, each with the machine it was made on."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("a", encoding="utf-8")
        device = torch.cuda.get_device_properties(0)
        self.machine = {
            "gpu": device.name,
            "torch": torch.__version__,
            "triton": triton.__version__,
            "python": platform.python_version(),
            "date": time.strftime("%Y-%m-%d"),
        }

    def write(self, **values: Any) -> None:
        self.file.write(json.dumps(values | self.machine) + "\n")
        self.file.flush()


def run_checks() -> bool:
    """The kernels' tests, compiled, in a process of their own."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/kernels/triton_cases.py"]
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
        y = xs[-1]
        passes = {
            "LayerNorm to codes": (
                3 * C,
                [partial(triton_norm.layer_norm_quantize, x, vector, vector, 1e-5) for x in xs],
            ),
            "add, LayerNorm to codes": (
                7 * C,
                [partial(triton_norm.add_layer_norm_quantize, x, y, vector, vector, vector, 1e-5) for x in xs],
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


def weight_only(log: Log, copy: float) -> None:
    """Few rows: the weight's bytes are the floor."""
    print(f"\n{'weight-only, N x K':28s}{'M':>8s}{'us':>9s}{'GB/s':>8s}{'of copy':>9s}{'bf16 us':>9s}")
    for (n, k), m in ((shape, m) for shape in CAMERA_LINEARS for m in (1, 10, 64)):
        copies = tune.weight_copies(n * k, m)
        weights = [torch.randint(-127, 128, (n, k), device="cuda", dtype=torch.int8) for _ in range(copies)]
        scale = torch.rand(n, 1, device="cuda")
        x = torch.randn(m, k, device="cuda", dtype=torch.float16)
        ms = tune.time_in_graph([partial(triton_weight_only.w8a16_linear, x, w, scale, None) for w in weights])
        floats = [w.bfloat16() for w in weights]
        bf16 = tune.time_in_graph([partial(F.linear, x.bfloat16(), w) for w in floats])
        rate = n * k * 1e-6 / ms
        log.write(kind="weight only", n=n, k=k, m=m, ms=ms, gb_s=rate, bf16_ms=bf16)
        shares = f"{rate:8.0f}{rate / copy:9.0%}{bf16 * 1e3:9.1f}"
        print(f"{f'{n} x {k}':28s}{m:8d}{ms * 1e3:9.1f}{shares}", flush=True)


def bf16_ms(linear: tune.Linear, m: int) -> float:
    """cuBLAS: the linear with its bias, nothing else."""
    x = torch.randn(m, linear.k, device="cuda", dtype=torch.bfloat16)
    copies = tune.weight_copies(2 * linear.n * linear.k, m)
    weights = [torch.randn(linear.n, linear.k, device="cuda", dtype=torch.bfloat16) for _ in range(copies)]
    bias = torch.randn(linear.n, device="cuda", dtype=torch.bfloat16)
    return tune.time_in_graph([partial(F.linear, x, weight, bias) for weight in weights])


def sweep(log: Log, out: Path, deadline: float) -> None:
    print(f"\n{'linear':18s}{'M':>8s}{'bf16':>7s}{'int8':>7s}{'ratio':>7s}  T(FL)OP/s; best tiles, us")
    best: dict[Size, tiles.Tile] = {}
    for m, linear in tune.work():
        if time.monotonic() > deadline:
            print(f"{linear.name:18s}{m:8d}  not reached")
            continue
        base = bf16_ms(linear, m)
        rows = tune.tune(linear, m, deadline)
        shape = {"m": m, "n": linear.n, "k": linear.k}
        log.write(kind="gemm", name=linear.name, tile="bf16 cuBLAS", ms=base, **shape)
        for tile, ms, why in rows:
            log.write(kind="gemm", name=linear.name, tile=str(tile), group_m=tile.group_m, ms=None if why else ms, failed=why, **shape)
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
        weight_only(log, copy)
    else:
        print("CHECKS FAILED: row passes and weight-only kernels are not timed; GEMM tiles have a check of their own")
    torch.cuda.empty_cache()
    sweep(log, args.out, deadline)
    print(f"{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
