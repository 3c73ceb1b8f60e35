"""INT8 on a CPU: medians of the linears of one VGGT-1B block, and of the whole block, against fp32 and bf16.

    python benchmarks/cpu_linear.py [--tokens 1041] [--repeats 15] [--threads 2]

The variants take turns within each repeat, so that a busy machine slows all of them alike. A line is printed
only after its INT8 result has been compared with the reference arithmetic.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from vggt_int8.kernels import cpu, cpu_block, reference

CHANNELS, HEADS = 1024, 16
LINEARS = {"qkv": (3072, 1024), "proj": (1024, 1024), "fc1": (4096, 1024), "fc2": (1024, 4096)}


def medians_ms(variants: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each variant, run in turns; one untimed round first."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for i in range(repeats + 1):
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            if i:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


class Linear:
    """One linear in the three forms that are compared; `mode` chooses."""

    def __init__(self, n: int, k: int) -> None:
        weight, self.bias = torch.randn(n, k) / k**0.5, torch.randn(n) * 0.1
        self.scale = reference.absmax_scale(weight, dim=1)
        self.codes = reference.quantize(weight, self.scale)
        self.weights = {dtype: weight.to(dtype) for dtype in (torch.float32, torch.bfloat16)}
        self.prepared = cpu.prepare(self.codes)

    def int8(self) -> cpu_block.Int8Linear:
        return cpu_block.Int8Linear(self.prepared, self.scale, self.bias)

    def __call__(self, x: Tensor, mode: str) -> Tensor:
        x2 = x.reshape(-1, x.shape[-1])
        if mode == "w8a8":
            return cpu.w8a8_linear_cpu(x2, self.prepared, self.scale, self.bias).view(*x.shape[:-1], -1)
        if mode == "w8a16":
            return cpu.w8a16_linear_cpu(x2, self.codes, self.scale, self.bias).view(*x.shape[:-1], -1)
        return F.linear(x, self.weights[x.dtype], self.bias.to(x.dtype))


def block(x: Tensor, linears: dict[str, Linear], mode: str) -> Tensor:
    """A frame block without RoPE: [B, P, C] -> [B, P, C]; what lies between the linears runs in x's dtype.

    Mode "fused" is w8a8 with the MLP and the attention of `cpu_block.py`.
    """
    b, p, c = x.shape
    ones = torch.ones(c, dtype=x.dtype)
    head_ones = torch.ones(c // HEADS, dtype=x.dtype)
    fused, mode = mode == "fused", "w8a8" if mode == "fused" else mode
    qkv = linears["qkv"](F.layer_norm(x, (c,), ones, ones), mode)
    q, k, v = qkv.view(b, p, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4)
    q, k = (F.layer_norm(t, (c // HEADS,), head_ones, head_ones) for t in (q, k))
    attention = (cpu_block.attention_cpu if fused else F.scaled_dot_product_attention)(q, k, v)
    x = x + linears["proj"](attention.transpose(1, 2).reshape(b, p, c), mode) * ones
    normed = F.layer_norm(x, (c,), ones, ones)
    if fused:
        mlp = cpu_block.w8a8_mlp_cpu(normed.view(-1, c), linears["fc1"].int8(), linears["fc2"].int8()).view_as(x)
    else:
        mlp = linears["fc2"](F.gelu(linears["fc1"](normed, mode)), mode)
    return x + mlp * ones


def check(linear: Linear, x: Tensor) -> None:
    """INT8 must equal the reference exactly before it is timed."""
    want = reference.w8a8_linear(x, linear.codes, linear.scale, linear.bias)
    if not torch.equal(linear(x, "w8a8"), want):
        raise SystemExit(f"{cpu.cpu_int8_kernel()} differs from the reference: no timing")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1041, help="rows: tokens of one frame")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    m = args.tokens
    flops = sum(2 * m * n * k for n, k in LINEARS.values())
    print(f"torch {torch.__version__}, {args.threads} threads, kernel: {cpu.cpu_int8_kernel()}")
    print(f"M = {m}: {flops / 1e9:.1f} GFLOP in the four linears of a block, weights 12.6 M\n")
    print(f"{cpu_block.cpu_attention_kernel()} for attention in the fused block; median ms, in turns")
    columns = "".join(f"{title:>10s}" for title in ("fp32", "bf16", "w8a16", "w8a8", "fp32/w8a8", "bf16/w8a8"))
    print(f"{'':14s}{columns}")
    linears = {name: Linear(n, k) for name, (n, k) in LINEARS.items()}
    with torch.inference_mode():
        for name, (_, k) in LINEARS.items():
            x = torch.randn(m, k)
            check(linears[name], x)
            show(name, linears[name], x, args.repeats, ["w8a16", "w8a8"])
        x, run = torch.randn(1, m, CHANNELS), lambda t, mode: block(t, linears, mode)
        show("block", run, x, args.repeats, ["w8a16", "w8a8"])
        show("block, fused", run, x, args.repeats, ["w8a8", "fused"])


def show(name: str, run: Callable[[Tensor, str], Tensor], x: Tensor, repeats: int, modes: list[str]) -> None:
    """One line of the table: fp32, bf16 and `modes`, the last two columns for the last of them."""
    x16 = x.bfloat16()
    variants = {"fp32": lambda: run(x, "float"), "bf16": lambda: run(x16, "float")}
    ms = medians_ms(variants | {mode: partial(run, x, mode) for mode in modes}, repeats)
    times = "".join(f"{value:10.2f}" for value in ms.values())
    last = ms[modes[-1]]
    print(f"{name:14s}{times:40s}{ms['fp32'] / last:10.2f}{ms['bf16'] / last:10.2f}")


if __name__ == "__main__":
    main()
