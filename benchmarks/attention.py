"""Attention at VGGT-1B's sizes on one GPU: cuDNN, FlashAttention-2, and the Triton kernel.

    python benchmarks/attention.py --out benchmarks/results/attention.jsonl [--frames 1 4 10 32 100] [--variants 0 4]
    python benchmarks/attention.py --frames 128 --kinds keys frame --keyframes 40

q, k and v are strided views of a qkv tensor [frames * 1041, 3, 16, 64] in fp16, as the network has them: "frame" is
attention inside each frame, "global" over all, "keys" from all to the tokens of --keyframes others. Queries and keys
are normalised, like the network's, and keys share a common part. Timed in a CUDA graph over inputs that rotate.

A sample of rows of every result is compared with fp32 arithmetic; a row that fails shows no rate. "sharp" repeats the
global attention of 10 frames with queries eight times as large, where variants that estimate the maximum ("frozen")
have to compute some tiles twice.
"""

import argparse
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
import triton
from torch import Tensor
from torch.nn.attention import sdpa_kernel

from vggt_int8.difference import Difference
from vggt_int8.files import append_json_line
from vggt_int8.kernels.cuda import triton_attention
from vggt_int8.kernels.cuda.attention_variants import candidates
from vggt_int8.kernels.cuda.launch import compiling
from vggt_int8.machine import architecture
from vggt_int8.runtime.attention import CUDNN, FLASH

TOKENS, HEADS, DIM = 1041, 16, 64
LIMIT = 2e-3  # relative error against fp32
LIMIT_OF_ONE = 0.1  # of any one value, in units of the largest
SAMPLED = 4  # heads, of 96 queries each
INPUTS = 200 << 20  # bytes of qkv tensors to rotate through, more than any L2 cache
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def make_qkv(sequences: int, tokens: int, sharpness: float) -> Tensor:
    """[B, N, 3, H, D] fp16; q and k layer-normalised and alike where tokens are, as after training."""
    qkv = torch.randn(sequences, tokens, 3, HEADS, DIM, device="cuda", dtype=torch.float16)
    qkv[:, :, 1] += 0.7 * qkv[:, :, 0]
    qkv[:, :, :2] = F.layer_norm(qkv[:, :, :2], (DIM,))
    qkv[:, :, 0] *= sharpness
    qkv[:, :, 1] += 2 * torch.randn(HEADS, DIM, device="cuda", dtype=torch.float16)
    return qkv


def views(qkv: Tensor) -> tuple[Tensor, ...]:
    return qkv.permute(2, 0, 3, 1, 4).unbind(0)


def library(backend: object, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def contenders(variants: list[int] | None) -> Iterator[tuple[str, str, Attend]]:
    """Kernel, variant, and the call."""
    yield "cuDNN", "", partial(library, CUDNN)
    yield "FlashAttention-2", "", partial(library, FLASH)
    arch = architecture(torch.device("cuda", 0))
    for number, variant in enumerate(candidates(arch)):
        if variants is None or number in variants:
            yield "Triton", str(variant), partial(triton_attention.float_attention, variant=variant)


def sample(q: Tensor, k: Tensor, v: Tensor) -> list[tuple[tuple[int, int], Tensor, Tensor]]:
    """((sequence, head), query rows, their exact results [96, D]) of the first, the last and other heads."""
    batch, heads, tokens, _ = q.shape
    generator = torch.Generator().manual_seed(0)
    places = [(0, 0), (batch - 1, heads - 1)]
    while len(places) < SAMPLED:
        places.append(tuple(int(torch.randint(n, (), generator=generator)) for n in (batch, heads)))
    found = []
    for b, h in places:
        middle = torch.randint(tokens, (48,), generator=generator)
        rows = torch.cat([torch.arange(24), middle, torch.arange(tokens - 24, tokens)]).cuda()
        weights = torch.softmax(q[b, h, rows].float() @ k[b, h].float().T * DIM**-0.5, dim=-1)
        found.append(((b, h), rows, weights @ v[b, h].float()))
    return found


def errors(out: Tensor, exact: list[tuple[tuple[int, int], Tensor, Tensor]]) -> tuple[float, float]:
    """Relative error, and the largest error in units of the largest value, over the sample."""
    out = out.unflatten(-1, (HEADS, DIM))
    got = torch.cat([out[b, rows, h].float() for (b, h), rows, _ in exact])
    want = torch.cat([values for _, _, values in exact])
    found = Difference().add(got, want)
    return found.relative, found.relative_max


def milliseconds(attend: Attend, inputs: list[tuple[Tensor, ...]], seconds: float) -> list[float]:
    """Times per call, sorted, of a graph that runs once over all inputs."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for qkv in inputs:
            attend(*qkv)
    times: list[float] = []
    stop = time.monotonic() + seconds
    while len(times) < 4 or (time.monotonic() < stop and len(times) < 50):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / len(inputs))
    return sorted(times[1:])


def cost_card(frames: list[int]) -> None:
    """What the work is, before anything is timed. At head dim 64, 256 FLOP come with one exponential."""
    properties = torch.cuda.get_device_properties(0)
    print(f"{properties.name}, {properties.multi_processor_count} multiprocessors; 16 exponentials a cycle on each")
    print(f"{'frames':>6s} {'frame TFLOP':>12s} {'global TFLOP':>13s} {'global 1e12 exponentials':>25s}")
    for count in frames:
        one, all_of_them = (4e-12 * HEADS * DIM * n * n for n in (TOKENS, count * TOKENS))
        print(f"{count:6d} {count * one:12.4f} {all_of_them:13.4f} {all_of_them / (4 * DIM):25.5f}")


def measure(kind: str, frames: int, arguments: argparse.Namespace, machine: dict[str, str]) -> None:
    sequences = frames if kind == "frame" else 1
    tokens = frames * TOKENS // sequences
    sharpness = 8.0 if kind == "sharp" else 1.0
    copies = max(1, min(8, math.ceil(INPUTS / (6 * frames * TOKENS * HEADS * DIM))))
    inputs = [views(make_qkv(sequences, tokens, sharpness)) for _ in range(copies)]
    keys = tokens
    if kind == "keys":
        keys = arguments.keyframes * TOKENS
        others = [views(make_qkv(1, keys, sharpness)) for _ in range(copies)]
        inputs = [(q, k, v) for (q, _, _), (_, k, v) in zip(inputs, others, strict=True)]
    exact = sample(*inputs[0])
    tflop = 4e-12 * sequences * HEADS * DIM * tokens * keys
    for kernel, variant, attend in contenders(arguments.variants):
        row: dict[str, object] = {"kind": kind, "frames": frames, "kernel": kernel, "scores": "fp16"}
        row |= {"variant": variant, "tflop": tflop}
        name = f"{kind:6s} {frames:4d}  {kernel:16s} {variant:36s}"
        try:
            relative, largest = errors(attend(*inputs[0]), exact)
            passed = relative < LIMIT and largest < LIMIT_OF_ONE  # NaN is less than nothing
            row |= {"relative_error": relative, "largest_error": largest, "passed": passed}
            line = f"WRONG: relative error {relative:.2e}, largest {largest:.2e}"
            if passed:
                times = milliseconds(attend, inputs, arguments.seconds)
                median = statistics.median(times)
                row |= {"ms": median, "ms_min": times[0], "ms_max": times[-1], "tflops": tflop / median * 1e3}
                rate, spread = tflop / median * 1e3, times[-1] / times[0] - 1
                line = f"{median:9.3f} ms {rate:7.0f} TFLOP/s  spread {spread:4.0%}  error {relative:.1e} {largest:.1e}"
        except (RuntimeError, triton.TritonError) as error:
            row |= {"failed": f"{type(error).__name__}: {error}"}
            line = f"failed: {type(error).__name__}: {str(error).splitlines()[0][:80]}"
        print(name, line, flush=True)
        if arguments.out:
            append_json_line(arguments.out, row | machine)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[1, 4, 10, 32, 100])
    parser.add_argument(
        "--kinds", nargs="+", choices=("frame", "global", "keys", "sharp"), help="default: all but keys"
    )
    parser.add_argument("--keyframes", type=int, default=40, help="frames whose keys and values there are, for keys")
    parser.add_argument("--variants", type=int, nargs="+", help="numbers in `candidates()`; default: all")
    parser.add_argument("--seconds", type=float, default=0.15, help="timed work per row; at least 3 runs")
    parser.add_argument("--out", type=Path, help="file to append JSON lines to")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this benchmark needs a CUDA device")
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    start = time.monotonic()
    machine = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }
    print(machine)
    cost_card(arguments.frames)
    with compiling():
        for kernel, _, attend in contenders(arguments.variants):
            if kernel == "Triton":
                for sequences, tokens in ((1, 2 * TOKENS), (2, TOKENS)):
                    attend(*views(make_qkv(sequences, tokens, 1.0)))
    print(f"all variants compiled after {time.monotonic() - start:.0f} s")
    for frames in arguments.frames:
        for kind in arguments.kinds or (("frame", "global") if frames > 1 else ("global",)):
            measure(kind, frames, arguments, machine)
    if 10 in arguments.frames and arguments.kinds is None:
        measure("sharp", 10, arguments, machine)
    print(f"{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
