"""INT8 linears on a CPU: the integers of `reference.py` through the fastest exact kernel of this machine.

CPUs with VNNI multiply unsigned by signed bytes and add four products to an int32 in one instruction; PyTorch
reaches it through `torch._int_mm`. Activation codes go in shifted by 128 (u8·s8), and `128 * sum(weight row)`
is taken off the int32 result, which is exact. CPUs without VNNI add pairs of products in 16 bits and
**saturate** without a word, so each candidate is tried once per process on extreme codes against the exact
product, and `cpu_int8_kernel()` names the one that passed. The last candidate needs no integer unit: float32
holds every sum of 1024 products of codes exactly.

A linear is bound by memory traffic as soon as its product runs on VNNI, so the passes around the product work
on slices of rows that stay in the cache. Notation: M rows (tokens), N outputs, K reduction.
"""

import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vggt_int8.kernels.reference import CODE_MAX

U8S8 = "torch._int_mm u8·s8"
S8S8 = "torch._int_mm s8·s8"
FLOAT32 = "float32 matmul of codes in slices of K (exact)"

_U8_OFFSET = 128
_EXACT_K = 1024  # 1024 * 127 * 127 < 2^24: float32 holds every partial sum, in any order
_ROWS_PER_THREAD, _MIN_ROWS = 64, 128  # 64 rows of 4096 float32 are 1 MB; fewer rows repack the weight too often
_WEIGHT_SLICE = 1 << 20  # elements of a weight-only layer that are floats at once


@dataclass(frozen=True)
class PreparedWeight:
    """A weight as the kernel of this machine wants it; made by `prepare`, never stored.

    `codes` is the layer's own int8 tensor [N, K], not a copy; `correction` int32 [N] (None if `kernel` needs
    none).
    """

    codes: Tensor
    correction: Tensor | None
    kernel: str


def prepare(weight: Tensor, kernel: str | None = None) -> PreparedWeight:
    """Prepare a weight [N, K] int8 for `int8_matmul`; `kernel` None takes this machine's,
    `cpu_int8_kernel()`.

    One cheap pass over the weight (about 2 % of a linear at 1041 rows). Keep the result as long as the weight
    stays in place; it holds on to the weight's memory, so drop it when the weight moves or is offloaded.
    """
    if weight.dtype != torch.int8 or weight.ndim != 2 or weight.device.type != "cpu":
        raise ValueError(
            f"prepare() takes an int8 matrix [N, K] on the CPU, not {weight.dtype} {list(weight.shape)} "
            f"on {weight.device}: pass the stored codes of a quantized linear"
        )
    kernel = kernel or cpu_int8_kernel()
    correction = None
    if kernel == U8S8:
        ones = torch.ones(1, weight.shape[1], dtype=torch.uint8)
        correction = torch._int_mm(ones, weight.t())[0] * _U8_OFFSET
    return PreparedWeight(weight, correction, kernel)


def int8_matmul(x_codes: Tensor, weight: PreparedWeight) -> Tensor:
    """[M, K] int8 x [N, K] int8 -> [M, N] int32, equal to `reference.int8_matmul` bit for bit."""
    if weight.kernel == U8S8:
        x_codes = (x_codes.to(torch.int16) + _U8_OFFSET).to(torch.uint8)
    acc = torch.empty(x_codes.shape[0], weight.codes.shape[0], dtype=torch.int32)
    acc = _raw_matmul(x_codes, weight, acc)
    return acc if weight.correction is None else acc.sub_(weight.correction)


def w8a8_linear_cpu(
    x: Tensor,
    weight: PreparedWeight,
    weight_scale: Tensor,
    bias: Tensor | None,
    input_scale: Tensor | None = None,
) -> Tensor:
    """INT8 linear. x [M, K] float, weight_scale [N, 1] fp32, bias [N] float -> [M, N] in x's dtype.

    The same floating-point operations in the same order as `reference.w8a8_linear`: equal results, not close
    ones.
    """
    out = x.new_empty(x.shape[0], weight.codes.shape[0])
    w8a8_linear_into(out, x, weight, weight_scale, bias, input_scale)
    return out


def w8a8_linear_into(
    out: Tensor,
    x: Tensor,
    weight: PreparedWeight,
    weight_scale: Tensor,
    bias: Tensor | None,
    input_scale: Tensor | None = None,
) -> None:
    """`w8a8_linear_cpu` written into `out` [M, N] of x's dtype."""
    slices = cache_slices(x.shape[0])
    acc = torch.empty(slices[0].stop, out.shape[1], dtype=torch.int32)
    for rows in slices:
        codes, x_scale = _quantize_rows(x[rows], input_scale, weight.kernel)
        sums = _raw_matmul(codes, weight, acc[: codes.shape[0]])
        _epilogue(sums, weight.correction, x_scale, weight_scale, bias, out[rows])


def w8a16_linear_cpu(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """Weight-only linear: x [M, K] float, weight [N, K] int8, weight_scale [N, 1] fp32 -> [M, N] in x's
    dtype.

    A slice of the weight's rows at a time becomes float (codes are exact in every float dtype); the scale is
    applied to the product, in fp32. The product itself runs in fp32, or in bf16 where x is bf16; CPUs are
    slow at fp16, and the unscaled sum would overflow it.
    """
    compute = torch.bfloat16 if x.dtype == torch.bfloat16 else torch.float32
    x_compute = x.to(compute)
    n, k = weight.shape
    out = x.new_empty(x.shape[0], n)
    for cols in row_slices(n, max(1, _WEIGHT_SLICE // k)):
        y = (x_compute @ weight[cols].to(compute).t()).float().mul_(weight_scale[cols].view(1, -1))
        out[:, cols] = y if bias is None else y.add_(bias[cols].float())
    return out


@functools.cache
def cpu_int8_kernel() -> str:
    """The kernel that INT8 linears use on this CPU: the first of U8S8, S8S8 that is exact and pays, else
    FLOAT32.

    `torch._int_mm` may be missing u8·s8 (torch 2.11), saturate (no VNNI) or be a plain loop (oneDNN switched
    off).
    """
    with torch.device("cpu"):  # also when asked while a model is built on the meta device
        for kernel in (U8S8, S8S8):
            if _is_exact(kernel) and _milliseconds(kernel) < _milliseconds(FLOAT32):
                return kernel
    return FLOAT32


@functools.cache
def int_mm_is_exact() -> bool:
    """Whether `torch._int_mm` on s8·s8 is exact on this CPU. Libraries call it without looking."""
    with torch.device("cpu"):  # also when asked while a model is built on the meta device
        return _is_exact(S8S8)


def _raw_matmul(codes: Tensor, weight: PreparedWeight, out: Tensor) -> Tensor:
    """Codes [M, K] as the kernel takes them (U8S8: uint8, shifted by 128) -> [M, N] int32, `correction` still
    in.
    """
    if weight.kernel != FLOAT32:
        return torch._int_mm(codes, weight.codes.t(), out=out)
    out.zero_()
    for part in row_slices(codes.shape[1], _EXACT_K):
        out += (codes[:, part].float() @ weight.codes[:, part].float().t()).to(torch.int32)
    return out


def _quantize_rows(x: Tensor, input_scale: Tensor | None, kernel: str) -> tuple[Tensor, Tensor]:
    """`reference.quantize_rows`, written as the kernel's codes: [M, K], scale [M, 1]."""
    offset, dtype = (_U8_OFFSET, torch.uint8) if kernel == U8S8 else (0, torch.int8)
    x = x.float()
    y = torch.abs(x) if input_scale is None else x * 0
    if input_scale is None:
        x_scale = y.amax(dim=1, keepdim=True).div_(CODE_MAX)
        x_scale.masked_fill_(x_scale == 0, 1.0)
        torch.div(x, x_scale, out=y)
    else:  # NaN or inf in a row must reach its result, and codes cannot carry it
        x_scale = y.sum(dim=1, keepdim=True).add_(input_scale)
        torch.div(x, input_scale, out=y)
    return y.round_().clamp_(-CODE_MAX, CODE_MAX).add_(offset).to(dtype), x_scale


def _epilogue(
    acc: Tensor, correction: Tensor | None, x_scale: Tensor, weight_scale: Tensor, bias: Tensor | None, out: Tensor
) -> None:
    """`reference.scaled_epilogue` written into `out`, in place where it is fp32. Overwrites `acc`."""
    if correction is not None:
        acc.sub_(correction)
    y = out.copy_(acc) if out.dtype == torch.float32 else acc.float()
    y.mul_(x_scale).mul_(weight_scale.view(1, -1))
    if bias is not None:
        y.add_(bias.float())
    if y is not out:
        out.copy_(y)


def cache_slices(total: int) -> list[slice]:
    """Slices of so many rows that what a layer makes of them stays in the caches of the threads at work.

    Small ones also keep the allocator from returning memory to the system after every layer: mapping 17 MB
    anew costs several milliseconds.
    """
    return list(row_slices(total, max(_MIN_ROWS, _ROWS_PER_THREAD * torch.get_num_threads()))) or [slice(0, 0)]


def row_slices(total: int, at_most: int) -> Iterator[slice]:
    """Equal parts of `range(total)`, none longer than `at_most`."""
    parts = max(1, -(-total // at_most))
    size = -(-total // parts)
    for start in range(0, total, max(1, size)):
        yield slice(start, min(start + size, total))


def _is_exact(kernel: str) -> bool:
    """Extreme codes over a long K find 16-bit saturation; odd sizes and one row find kernels for special
    shapes.
    """
    generator = torch.Generator().manual_seed(0)
    for m, k, n in ((1, 4096, 8), (17, 1037, 9), (64, 2048, 64)):
        x = torch.randint(-127, 128, (m, k), generator=generator, dtype=torch.int8)
        weight = torch.randint(-127, 128, (n, k), generator=generator, dtype=torch.int8)
        x[0], weight[0] = 127, 127
        weight[-1] = -127
        try:
            got = int8_matmul(x, prepare(weight, kernel))
        except RuntimeError:  # this build of torch has no such kernel
            return False
        if not torch.equal(got, (x.double() @ weight.double().t()).to(torch.int32)):
            return False
    return True


def _milliseconds(kernel: str) -> float:
    """Best of three products; the candidates differ by several times, so noise decides nothing."""
    x, weight = (torch.full((n, 512), 3, dtype=torch.int8) for n in (128, 512))
    prepared = prepare(weight, kernel)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        int8_matmul(x, prepared)
        best = min(best, time.perf_counter() - start)
    return best * 1e3
