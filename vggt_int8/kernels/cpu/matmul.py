"""The integer product on a CPU: int32 sums of `reference.py`, bit for bit, by the fastest exact kernel there is.

That is our own (`compiled.py`) wherever it can be compiled. Elsewhere it is one of PyTorch's: CPUs with VNNI
multiply unsigned by signed bytes and add four products to an int32 in one instruction, which PyTorch
reaches through `torch._int_mm`. Either oneDNN deals with the signs (s8·s8), or activation codes go in shifted by 128
(u8·s8), and `128 * sum(weight row)` is taken off the int32 result, which is exact; the first saves two passes, but not
every version of oneDNN has a fast kernel for it. CPUs without VNNI add pairs of products in 16 bits and
**saturate** without a word, so each candidate is tried once per process on extreme codes against the exact
product, and `cpu_int8_kernel()` names the one that passed. The last candidate needs no integer unit: float32
holds every sum of 1024 products of codes exactly.

Notation: M rows (tokens), N outputs, K reduction.
"""

import functools
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from vggt_int8.kernels.cpu import compiled
from vggt_int8.kernels.cpu.memory import LARGEST_BLOCK

U8S8 = "torch._int_mm u8·s8"
S8S8 = "torch._int_mm s8·s8"
FLOAT32 = "float32 matmul of codes in slices of K (exact)"

_U8_OFFSET = 128
_EXACT_K = 1024  # 1024 * 127 * 127 < 2^24: float32 holds every partial sum, in any order
# 32-bit sums of one product: just below the largest block that is kept. The weight is packed anew for each product.
SUMS_AT_ONCE = (LARGEST_BLOCK >> 2) - (1 << 14)
VALUES_AT_ONCE = 1 << 20  # fp32 numbers that a chain of passes works on: 4 MB, which stay in the caches
_MIN_ROWS = 64  # of a slice, per thread: with fewer, packing the weight anew for each slice costs more than it saves


def int8_matmul(x_codes: Tensor, weight: Tensor, out: Tensor | None = None, kernel: str | None = None) -> Tensor:
    """[M, K] int8 x [N, K] int8 -> [M, N] int32 (in `out` if given), equal to `reference.int8_matmul` bit for bit.

    `kernel` None takes this machine's, `cpu_int8_kernel()`.
    """
    if out is None:
        out = x_codes.new_empty(x_codes.shape[0], weight.shape[0], dtype=torch.int32)
    excess = int8_sums(x_codes, weight, out, kernel)
    return out if excess is None else out.sub_(excess)


def int8_sums(x_codes: Tensor, weight: Tensor, out: Tensor, kernel: str | None = None) -> Tensor | None:
    """`int8_matmul` into `out`, but for the int32 [N] returned, which the caller takes off each row in a later pass."""
    kernel = kernel or cpu_int8_kernel()
    if len(x_codes) == 1 and x_codes.stride(0) < x_codes.shape[1]:  # which `_int_mm` takes for the row's length
        x_codes = x_codes.clone(memory_format=torch.contiguous_format)
    if kernel == U8S8:
        shifted = x_codes.view(torch.uint8).bitwise_xor(_U8_OFFSET)  # the sign bit flipped: 128 more, as unsigned
        torch._int_mm(shifted, weight.t(), out=out)
        return _correction(weight)
    if kernel == S8S8:
        torch._int_mm(x_codes, weight.t(), out=out)
        return None
    if kernel != FLOAT32:
        compiled.int8_matmul_(out, x_codes, weight)
        return None
    out.zero_()
    for part in row_slices(x_codes.shape[1], _EXACT_K):
        out += (x_codes[:, part].float() @ weight[:, part].float().t()).to(torch.int32)
    return None


@functools.cache
def cpu_int8_kernel() -> str:
    """The kernel that INT8 linears use on this CPU: our own, else the fastest of S8S8, U8S8 and FLOAT32 that are exact.

    `torch._int_mm` may be missing u8·s8 (torch 2.11), saturate (no VNNI) or be a plain loop (oneDNN switched off).
    """
    if (library := compiled.library()) is not None:
        return library.name
    with torch.device("cpu"):  # also when asked while a model is built on the meta device
        seconds = {kernel: _seconds(kernel) for kernel in (S8S8, U8S8) if _is_exact(kernel)}
        seconds[FLOAT32] = _seconds(FLOAT32)
    return min(seconds, key=lambda kernel: seconds[kernel])


@functools.cache
def int_mm_is_exact() -> bool:
    """Whether `torch._int_mm` on s8·s8 is exact on this CPU. Libraries call it without looking."""
    with torch.device("cpu"):  # also when asked while a model is built on the meta device
        return _is_exact(S8S8)


def slices_of_rows(rows: int, width: int) -> list[slice]:
    """Slices of rows of `width` numbers, for passes that work on `VALUES_AT_ONCE`."""
    return list(row_slices(rows, max(1, VALUES_AT_ONCE // max(1, width)))) or [slice(0, 0)]


def rows_of_a_product(outputs: int) -> int:
    """How many rows, so that there are `SUMS_AT_ONCE`."""
    return max(_MIN_ROWS * torch.get_num_threads(), SUMS_AT_ONCE // max(1, outputs))


def row_slices(total: int, at_most: int) -> Iterator[slice]:
    """Equal parts of `range(total)`, none longer than `at_most`."""
    parts = max(1, -(-total // at_most))
    size = -(-total // parts)
    for start in range(0, total, max(1, size)):
        yield slice(start, min(start + size, total))


def _correction(weight: Tensor) -> Tensor:
    """What u8·s8 sums are too large by: 128 times the sum of each row of `weight`, int32 [N].

    One pass over the weight, which costs about as much as 20 rows of a product.
    """
    ones = weight.new_ones(1, weight.shape[1], dtype=torch.uint8)
    return torch._int_mm(ones, weight.t())[0] * _U8_OFFSET


def _is_exact(kernel: str) -> bool:
    try:
        return compiled.multiplies_exactly(functools.partial(int8_matmul, kernel=kernel))
    except RuntimeError:  # this build of torch has no such kernel
        return False


def _seconds(kernel: str) -> float:
    """Of the fastest of a dozen products, on one thread: on a busy machine several wait for one another."""
    x, weight = (torch.full((n, 512), 3, dtype=torch.int8) for n in (128, 512))
    threads, times = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        for _ in range(12):
            start = time.perf_counter()
            int8_matmul(x, weight, kernel=kernel)
            times.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return min(times)
