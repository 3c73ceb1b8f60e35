"""INT8 on a CPU: medians of the linears of one VGGT-1B block, and of the whole block, against fp32 and bf16.

    python benchmarks/cpu_linear.py [--tokens 1041] [--repeats 15] [--threads 2]

The variants take turns within each repeat, so that a busy machine slows all of them alike. A line is printed
only after its INT8 result has been compared with the reference arithmetic.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vggt_int8.kernels import cpu, reference

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

    def __call__(self, x: Tensor, mode: str) -> Tensor:
        x2 = x.reshape(-1, x.shape[-1])
        if mode == "w8a8":
            return cpu.w8a8_linear_cpu(x2, self.prepared, self.scale, self.bias).view(*x.shape[:-1], -1)
        if mode == "w8a16":
            return cpu.w8a16_linear_cpu(x2, self.codes, self.scale, self.bias).view(*x.shape[:-1], -1)
        return F.linear(x, self.weights[x.dtype], self.bias.to(x.dtype))


def block(x: Tensor, linears: dict[str, Linear], mode: str) -> Tensor:
    """A frame block without RoPE: [B, P, C] -> [B, P, C]; every element-wise part runs in x's dtype."""
    b, p, c = x.shape
    ones = torch.ones(c, dtype=x.dtype)
    head_ones = torch.ones(c // HEADS, dtype=x.dtype)
    qkv = linears["qkv"](F.layer_norm(x, (c,), ones, ones), mode)
    q, k, v = qkv.view(b, p, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4)
    q, k = (F.layer_norm(t, (c // HEADS,), head_ones, head_ones) for t in (q, k))
    attention = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, p, c)
    x = x + linears["proj"](attention, mode) * ones
    hidden = F.gelu(linears["fc1"](F.layer_norm(x, (c,), ones, ones), mode))
    return x + linears["fc2"](hidden, mode) * ones


def check(linear: Linear, x: Tensor) -> None:
    """INT8 must equal the reference exactly before it is timed."""
    want = reference.w8a8_linear(x, linear.codes, linear.scale, linear.bias)
    if not torch.equal(linear(x, "w8a8"), want):
        raise SystemExit(f"{cpu.cpu_int8_kernel()} differs from the reference: no timing")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    columns = "".join(f"{name:>11s}" for name in ("fp32", "bf16", "w8a8", "w8a16", "fp32/w8a8", "bf16/w8a8"))
    print(f"{'median ms':8s}{columns}")
    linears = {name: Linear(n, k) for name, (n, k) in LINEARS.items()}
    with torch.inference_mode():
        for name, (_, k) in LINEARS.items():
            x = torch.randn(m, k)
            check(linears[name], x)
            show(name, lambda t, mode, name=name: linears[name](t, mode), x, args.repeats)
        x = torch.randn(1, m, CHANNELS)
        show("block", lambda t, mode: block(t, linears, mode), x, args.repeats)


def show(name: str, run: Callable[[Tensor, str], Tensor], x: Tensor, repeats: int) -> None:
    x16 = x.bfloat16()
    variants = {
        "fp32": lambda: run(x, "float"),
        "bf16": lambda: run(x16, "float"),
        "w8a8": lambda: run(x, "w8a8"),
        "w8a16": lambda: run(x, "w8a16"),
    }
    ms = medians_ms(variants, repeats)
    times = "".join(f"{ms[v]:11.2f}" for v in variants)
    print(f"{name:9s}{times}{ms['fp32'] / ms['w8a8']:11.2f}{ms['bf16'] / ms['w8a8']:11.2f}")


if __name__ == "__main__":
    main()
