"""Powers of two in Triton, some of them without the special-function units.

Hopper makes 16 exponentials a cycle on a multiprocessor, and in attention at head dim 64 that is as slow as its matrix
units. Multiplications and additions are eight times as fast, and half idle meanwhile: one exponential of some can be a
polynomial. 2^x = 2^n * 2^f, n the nearest integer, f in [-0.5, 0.5]: a cubic for 2^f with the least relative error,
7.5e-5, a sixth of what rounding weights to fp16 costs; n goes into the exponent by an addition of integers.

The instructions are written out since Triton has no other way to treat values of one block differently without moving
them between threads. Its interpreter has none of that: there all are `tl.exp2`.
"""

# mypy: allow-untyped-defs
# (Triton kernels have no Python types.)

import struct

import triton
import triton.language as tl

# Least relative error of 2^f over [-0.5, 0.5] (Remez), from the highest coefficient down.
CUBIC = (0.05517168, 0.24261117, 0.69326099, 0.99992807)
_ROUNDER = 12582912.0  # 1.5 * 2^23: adding it leaves the nearest integer in the low bits
# Below, a weight is 0 for all that is added to it; above, the result is inf or NaN, which who calls looks for.
_LOWEST, _HIGHEST = -125.0, 128.5


def _float(value: float) -> str:
    return f"0f{struct.unpack('>I', struct.pack('>f', value))[0]:08X}"


def _polynomial(out: int, x: int) -> str:
    """PTX: register $out = 2^$x."""
    cubic, square, linear, constant = map(_float, CUBIC)
    return f"""
        max.NaN.f32 t, ${x}, {_float(_LOWEST)};
        min.NaN.f32 t, t, {_float(_HIGHEST)};
        add.rn.f32 m, t, {_float(_ROUNDER)};
        sub.rn.f32 n, m, {_float(_ROUNDER)};
        sub.rn.f32 f, t, n;
        fma.rn.f32 p, f, {cubic}, {square};
        fma.rn.f32 p, p, f, {linear};
        fma.rn.f32 p, p, f, {constant};
        mov.b32 i, m;
        mov.b32 j, p;
        shl.b32 i, i, 23;
        add.s32 j, i, j;
        mov.b32 ${out}, j;"""


def _assembly(count: int) -> str:
    """PTX for `count` values, the last of them by the polynomial."""
    special = "".join(f"\n        ex2.approx.ftz.f32 ${i}, ${count + i};" for i in range(count - 1))
    registers = ".reg .f32 t, m, n, f, p; .reg .b32 i, j;"
    return "{" + registers + special + _polynomial(count - 1, 2 * count - 1) + "\n}"


def _constraints(count: int) -> str:
    return ",".join(["=f"] * count + ["f"] * count)


_OF_2: tl.constexpr = tl.constexpr(_assembly(2))
_OF_4: tl.constexpr = tl.constexpr(_assembly(4))
_OF_8: tl.constexpr = tl.constexpr(_assembly(8))
_REGISTERS_OF_2: tl.constexpr = tl.constexpr(_constraints(2))
_REGISTERS_OF_4: tl.constexpr = tl.constexpr(_constraints(4))
_REGISTERS_OF_8: tl.constexpr = tl.constexpr(_constraints(8))
_INTERPRETED: tl.constexpr = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def exp2_split(x, SPLIT: tl.constexpr):
    """2^x, fp32, one of SPLIT values by the polynomial; 0: none. NaN for NaN, and NaN or inf above 128."""
    if SPLIT == 0 or _INTERPRETED:
        y = tl.exp2(x)
    elif SPLIT == 2:
        y = tl.inline_asm_elementwise(_OF_2, _REGISTERS_OF_2, [x], dtype=tl.float32, is_pure=True, pack=2)
    elif SPLIT == 4:
        y = tl.inline_asm_elementwise(_OF_4, _REGISTERS_OF_4, [x], dtype=tl.float32, is_pure=True, pack=4)
    else:
        tl.static_assert(SPLIT == 8)
        y = tl.inline_asm_elementwise(_OF_8, _REGISTERS_OF_8, [x], dtype=tl.float32, is_pure=True, pack=8)
    return y
