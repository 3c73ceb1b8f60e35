"""The grouped Hadamard transform, `reference.rotate`, for kernels that hold whole groups of a row in registers.

Sums and differences of pairs, at rising or falling distances. Pairs within one thread cost an addition, others a
shuffle or a trip through shared memory. In the accumulators of Hopper's products a thread has 64 of 256 columns of a
row, so six of the eight steps stay within it; but only with falling distances does the compiler keep all of them there
(fc1's tile of 128 x 256 on an H200: 130 us instead of 188).
"""

# mypy: allow-untyped-defs
# (Triton kernels have no Python types.)

import triton
import triton.language as tl


@triton.jit
def _sums_and_differences(y, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DISTANCE: tl.constexpr):
    pairs = tl.permute(tl.reshape(y, (ROWS * COLUMNS // (2 * DISTANCE), 2, DISTANCE)), (0, 2, 1))
    one, other = tl.split(pairs)
    return tl.reshape(tl.permute(tl.join(one + other, one - other), (0, 2, 1)), (ROWS, COLUMNS))


@triton.jit
def sums_and_differences(y, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEPS: tl.constexpr, FALLING: tl.constexpr):
    """Rows [ROWS, COLUMNS] fp32 times the matrix of +1 and -1 of order 2^STEPS, in groups of that size.

    The result still lacks `rotation_factor(STEPS)`, which callers combine with other factors.
    """
    for step in tl.static_range(STEPS):
        if FALLING:
            y = _sums_and_differences(y, ROWS, COLUMNS, 1 << (STEPS - 1 - step))
        else:
            y = _sums_and_differences(y, ROWS, COLUMNS, 1 << step)
    return y


@triton.jit
def rotation_factor(STEPS: tl.constexpr):
    return 2.0 ** (-0.5 * STEPS)


def steps(rotation: int) -> int:
    """STEPS for groups of `rotation`, a power of two, or 0 for none."""
    return max(0, rotation.bit_length() - 1)
