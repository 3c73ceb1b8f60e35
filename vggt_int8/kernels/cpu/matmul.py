"""The integer product on a CPU: the int32 sums of `reference.py`, bit for bit, by our own kernels or by PyTorch.

PyTorch's is `torch._int_mm` if that is fast and exact (AVX-512 with VNNI). Otherwise it is a float product: float32
holds every sum of 1024 products of codes exactly.

Notation: M rows (tokens), N outputs, K reduction.
"""

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from vggt_int8.kernels.cpu import compiled
from vggt_int8.kernels.cpu.memory import LARGEST_BLOCK
from vggt_int8.machine import int_mm_is_exact, pytorch_uses_avx512

INT_MM = "torch._int_mm"
FLOAT32 = "float32 matmul of codes in slices of K (exact)"

_EXACT_K = 1024  # 1024 * 127 * 127 < 2^24: float32 holds every partial sum, in any order
# 32-bit sums of one product: just below the largest block that the allocator reuses. The weight is packed again for
# each product.
SUMS_AT_ONCE = (LARGEST_BLOCK >> 2) - (1 << 14)
VALUES_AT_ONCE = 1 << 18  # fp32 values that a chain of passes works on: 1 MB, so that intermediates stay in the cache
_MIN_ROWS = 64  # of a slice, per thread: with fewer, packing the weight anew for each slice costs more than it saves


def int8_matmul(x_codes: Tensor, weight: Tensor) -> Tensor:
    """[M, K] int8 x [N, K] int8 -> [M, N] int32, equal to `reference.int8_matmul` bit for bit."""
    kernel = cpu_int8_kernel()
    if kernel == INT_MM:
        if len(x_codes) == 1 and x_codes.stride(0) < x_codes.shape[1]:  # which it takes for the row's length
            x_codes = x_codes.clone(memory_format=torch.contiguous_format)
        return torch._int_mm(x_codes, weight.t())
    if kernel != FLOAT32:
        return compiled.int8_matmul(x_codes, weight)
    out = x_codes.new_zeros(len(x_codes), len(weight), dtype=torch.int32)
    for part in row_slices(x_codes.shape[1], _EXACT_K):
        out += (x_codes[:, part].float() @ weight[:, part].float().t()).to(torch.int32)
    return out


@functools.cache
def cpu_int8_kernel() -> str:
    """The kernel that INT8 linears use on this CPU."""
    if (library := compiled.library()) is not None:
        return library.name
    return INT_MM if pytorch_uses_avx512() and int_mm_is_exact() else FLOAT32


def slices_of_rows(rows: int, width: int) -> list[slice]:
    """Slices of rows of `width` values, for passes that work on `VALUES_AT_ONCE`."""
    return list(row_slices(rows, max(1, VALUES_AT_ONCE // max(1, width)))) or [slice(0, 0)]


def rows_of_a_product(outputs: int) -> int:
    """Number of rows with `SUMS_AT_ONCE` sums."""
    return max(_MIN_ROWS * torch.get_num_threads(), SUMS_AT_ONCE // max(1, outputs))


def row_slices(total: int, at_most: int) -> Iterator[slice]:
    """Equal slices of `range(total)`, each at most `at_most` long."""
    parts = max(1, -(-total // at_most))
    size = -(-total // parts)
    for start in range(0, total, max(1, size)):
        yield slice(start, min(start + size, total))
