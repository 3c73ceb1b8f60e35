"""Without compiled kernels the CPU operators equal the reference exactly, whichever product they run on."""

import os
import platform
import resource
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.kernels.compiled import without
from vggt_int8 import machine
from vggt_int8.difference import relative_error
from vggt_int8.kernels import reference
from vggt_int8.kernels.cpu import compiled, matmul, memory
from vggt_int8.kernels.cpu import ops as cpu_ops
from vggt_int8.kernels.epilogue import Epilogue
from vggt_int8.recipe import Scheme

KERNELS = [matmul.INT_MM, matmul.FLOAT32]
SHAPES = [(1, 64, 8), (37, 37, 9), (16, 4096, 1), (130, 1037, 65), (1041, 64, 33), (0, 16, 8)]  # M, K, N


@pytest.fixture(autouse=True)
def _without_compiled_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch)


def usable(kernel: str) -> None:
    if kernel == matmul.INT_MM and not machine.int_mm_is_exact():
        pytest.skip(f"{kernel} is not exact on this CPU")


def codes(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(-127, 128, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.int8)


def hard_rows(m: int, k: int) -> torch.Tensor:
    """Normal rows, and where there is room: zeros, one outlier, tiny (scale underflows), subnormal scale."""
    x = torch.randn(m, k, generator=torch.Generator().manual_seed(1))
    if m >= 16:
        x[1], x[3], x[4] = 0, x[3] * 1e-6, 0
        x[2, 0] = 3e4
        x[4, 0], x[5] = 1e-45, 1e-42
    return x


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
def test_integer_product_is_exact(kernel: str, m: int, k: int, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    usable(kernel)
    monkeypatch.setattr(matmul, "cpu_int8_kernel", lambda: kernel)
    x, weight = codes(m, k), codes(n, k, seed=2)
    x[: m // 2] = 127
    weight[: n // 2] = -127
    assert torch.equal(matmul.int8_matmul(x, weight), reference.int8_matmul(x, weight))


def static_scales_of(m: int) -> dict[str, torch.Tensor]:
    """For m rows."""
    turns = next((r for r in (3, 5, 2) if m % r == 0), 1)
    counts = {"one": 1, "take turns": turns, "for each row": m or 1}
    return {name: torch.linspace(0.01, 0.03, count)[:, None] for name, count in counts.items()}


def ways_to_static_codes(m: int, n: int) -> list[dict[str, Any]]:
    """What an `Epilogue` says of codes [m, n]: every kind of static scales, rotated or not."""
    scales, rotations = static_scales_of(m).values(), {0, Scheme(rotation=256).rotation_of(n)}
    return [{"out_scale": scale, "rotation": rotation} for scale in scales for rotation in rotations]


def test_static_scales_take_turns() -> None:
    """By hand: two scales, four rows."""
    x = torch.tensor([[10.0, -3.0]]).expand(4, 2).contiguous()
    codes, scale = cpu_ops.quantize_rows(x, torch.tensor([0.5, 2.0]))
    assert codes.tolist() == [[20, -6], [5, -2], [20, -6], [5, -2]]  # 1.5 rounds to the even 2
    assert scale.tolist() == [[0.5], [2.0], [0.5], [2.0]]


def test_static_codes_pass_nan_on_through_the_scale_of_their_row() -> None:
    x_scale = torch.tensor([0.1, float("nan"), 0.1, float("inf")]).view(4, 1)
    operands = codes(4, 64), x_scale, codes(16, 64), torch.full((16, 1), 0.01)
    for rotation in (0, 16):
        epilogue = Epilogue(None, torch.float32, out_scale=torch.tensor([0.5, 0.25]), rotation=rotation)
        for found in (
            cpu_ops.int8_gemm_quantize(*operands, epilogue),
            reference.int8_gemm_quantize(*operands, epilogue),
        ):
            assert found[1].flatten()[::2].tolist() == [0.5, 0.5]
            assert found[1].flatten()[1::2].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("static", ["", "one", "take turns", "for each row"])
def test_codes_equal_the_reference(dtype: torch.dtype, static: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "VALUES_AT_ONCE", 1 << 11)  # several slices, the last one short
    for m, k, _ in SHAPES:
        input_scale = static_scales_of(m)[static] if static else None
        x, (weight, bias) = hard_rows(m, k).to(dtype), torch.randn(2, k, generator=torch.Generator().manual_seed(9))
        for rotation in {0, Scheme(rotation=256).rotation_of(k)}:
            way = (input_scale, rotation)
            exact(cpu_ops.quantize_rows(x, *way), reference.quantize_rows(x, *way))
            if rotation:
                assert torch.equal(cpu_ops.rotate_rows(x, rotation), reference.rotate_rows(x, rotation))
            norm = (x, weight.to(dtype), bias.to(dtype), 1e-5, *way)
            exact(cpu_ops.layer_norm_quantize(*norm), reference.layer_norm_quantize(*norm))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("ending", ["plain", "bias", "gelu", "residual"])
def test_gemm_equals_the_reference(
    kernel: str, dtype: torch.dtype, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usable(kernel)
    monkeypatch.setattr(matmul, "cpu_int8_kernel", lambda: kernel)
    monkeypatch.setattr(matmul, "VALUES_AT_ONCE", 1 << 11)  # several slices, the last one short
    monkeypatch.setattr(matmul, "SUMS_AT_ONCE", 1 << 12)  # several products of several slices
    monkeypatch.setattr(matmul, "_MIN_ROWS", 16)
    for m, k, n in SHAPES:
        generator = torch.Generator().manual_seed(m)
        operands = (*reference.quantize_rows(hard_rows(m, k).to(dtype)), codes(n, k, seed=3))
        scale = torch.rand(n, 1, generator=generator) * 0.01
        bias = None if ending == "plain" else torch.linspace(-3, 3, n).half()
        residual = torch.randn(m, n, generator=generator).to(dtype) if ending == "residual" else None
        gamma = torch.rand(n, generator=generator).to(dtype) if ending == "residual" else None
        arguments = (*operands, scale, Epilogue(bias, dtype, ending == "gelu", gamma, residual))
        want = reference.int8_gemm(*arguments)
        exact((cpu_ops.int8_gemm(*arguments),), (want,))
        if residual is None:
            for way in ({}, *ways_to_static_codes(m, n)):
                follows = (*arguments[:-1], arguments[-1]._replace(**way))
                exact(cpu_ops.int8_gemm_quantize(*follows), reference.int8_gemm_quantize(*follows))
        if residual is not None:  # which the result may be written over
            cpu_ops.int8_gemm_into_(residual, *arguments)
            exact((residual,), (want,))


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that is made, but for those given."""

    def __init__(self, *known: torch.Tensor) -> None:
        super().__init__()
        self.known, self.bytes = {x.untyped_storage().data_ptr() for x in known}, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in self.known:
                self.bytes = max(self.bytes, x.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_is_in_between_is_never_as_large_as_the_result(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice of sums, a slice of K of the weight as floats, or a slice of rows: beside codes and results, no more."""
    usable(kernel)
    monkeypatch.setattr(matmul, "cpu_int8_kernel", lambda: kernel)
    monkeypatch.setattr(matmul, "VALUES_AT_ONCE", 1 << 13)
    monkeypatch.setattr(matmul, "SUMS_AT_ONCE", 1 << 14)
    monkeypatch.setattr(matmul, "_MIN_ROWS", 1)
    m, k, n = 1041, 2048, 256
    x, gemm = torch.randn(m, n), (codes(m, k), torch.ones(m, 1), codes(n, k), torch.ones(n, 1))
    qkv, rope, vector = torch.randn(m, 3, 4, 16), torch.randn(2, m, 16), torch.ones(n)
    sums, weight, values = 4 << 14, 4 * n * 1024 if kernel == matmul.FLOAT32 else 0, 4 << 13
    residual = torch.randn(m, n)
    epilogue = Epilogue(vector, torch.float32, True, vector, residual)
    calls = {
        "quantize_rows": (lambda: cpu_ops.quantize_rows(x), values),
        "layer_norm_quantize": (lambda: cpu_ops.layer_norm_quantize(x, vector, vector, 1e-5), values),
        "int8_gemm_into_": (lambda: cpu_ops.int8_gemm_into_(residual, *gemm, epilogue), max(sums, weight)),
        "int8_gemm_quantize": (
            lambda: cpu_ops.int8_gemm_quantize(*gemm, Epilogue(None, torch.float32, True)),
            max(sums, weight),
        ),
        "qk_norm_rope_": (lambda: cpu_ops.qk_norm_rope_(qkv, *(vector[:16],) * 4, rope, 1e-5), 3 * values),
    }
    for name, (call, limit) in calls.items():
        with Largest(residual, qkv, rope, x, *gemm) as largest:
            call()
        if not name.endswith("_"):
            limit = max(limit, m * n)  # codes that are its result
        assert 0 < largest.bytes <= limit, name
        assert largest.bytes < 4 * m * n, name


def exact(got: tuple[torch.Tensor, ...], want: tuple[torch.Tensor, ...]) -> None:
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_changed_weight_is_noticed() -> None:
    x, weight = codes(5, 64), torch.nn.Parameter(codes(8, 64, seed=2), requires_grad=False)
    changes = (
        lambda: None,
        lambda: weight.neg_(),
        lambda: setattr(weight, "data", codes(8, 64, seed=3)),
        lambda: weight.data.copy_(weight.data.flip(0)),
    )
    for change in changes:
        change()
        assert torch.equal(matmul.int8_matmul(x, weight), reference.int8_matmul(x, weight))
    with torch.inference_mode():
        weight = codes(8, 64, seed=4)
        assert torch.equal(matmul.int8_matmul(x, weight), reference.int8_matmul(x, weight))


@pytest.mark.parametrize("stride", [1, 2, 63])
def test_one_row_of_a_column(stride: int) -> None:
    """A single row is contiguous with any stride, which `torch._int_mm` takes for the length of a row."""
    x, weight = torch.as_strided(codes(64, 64), (1, 64), (stride, 1)), codes(8, 64, seed=2)
    assert x.is_contiguous()
    assert torch.equal(matmul.int8_matmul(x, weight), reference.int8_matmul(x, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("frames", "tokens"), [(1, 1), (3, 37), (2, 1041), (40, 9)])
def test_qk_norm_rope_equals_the_reference(
    dtype: torch.dtype, frames: int, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matmul, "VALUES_AT_ONCE", 1 << 12)  # several frames at a time, or parts of one
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(frames * tokens, 3, 2, 16, generator=generator).to(dtype)
    norms = torch.randn(4, 16, generator=generator).to(dtype)
    rope = torch.randn(2, tokens, 16, generator=generator)
    want = reference.qk_norm_rope(qkv, *norms, rope, 1e-5)
    cpu_ops.qk_norm_rope_(qkv, *norms, rope, 1e-5)
    assert torch.equal(qkv, want)
    want = reference.qk_norm_rope(qkv, None, None, None, None, rope, 1e-5, rotate_half=True)
    cpu_ops.qk_norm_rope_(qkv, None, None, None, None, rope, 1e-5, rotate_half=True)
    assert torch.equal(qkv, want)
    kv = qkv[:, 1:].contiguous()
    want = reference.norm_rope(kv, *norms[:2], rope, 1e-5)
    cpu_ops.norm_rope_(kv, *norms[:2], rope, 1e-5)
    assert torch.equal(kv, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(5, 8), (7, 9)])
def test_resize_equals_the_reference_and_leaves_its_input(dtype: torch.dtype, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 8, 8, generator=generator).to(dtype)
    bias = torch.randn(8, generator=generator).to(dtype)
    addend = torch.randn(2, *size, 8, generator=generator).to(dtype)
    kept = x.clone()
    for added in ((), (torch.rand(size[1], 4), torch.rand(size[0], 4), bias, addend)):
        assert torch.equal(cpu_ops.resize(x, *size, *added), reference.resize(x, *size, *added))
        assert torch.equal(x, kept)


def w8a8_linear(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return cpu_ops.int8_gemm(*cpu_ops.quantize_rows(x), weight, scale, Epilogue(None, x.dtype))


@pytest.mark.parametrize("input_scale", [None, torch.tensor([0.02])])
def test_nan_and_inf_stay_visible(input_scale: torch.Tensor | None) -> None:
    x = torch.ones(3, 64)
    x[0, 5], x[1, 5] = float("nan"), float("inf")
    operands = (*cpu_ops.quantize_rows(x, input_scale), codes(8, 64), torch.ones(8, 1))
    y = cpu_ops.int8_gemm(*operands, Epilogue(None, x.dtype))
    assert not y[:2].isfinite().any()
    assert y[2].isfinite().all()


def test_fp16_result_fits_where_a_partial_product_does_not() -> None:
    x = torch.randn(8, 4096, generator=torch.Generator().manual_seed(5)) * 40
    x[4:] *= 1e-3 / 40
    weight = torch.randn(16, 4096, generator=torch.Generator().manual_seed(6)) * 0.01
    scale = reference.absmax_scale(weight, dim=1)
    stored = reference.quantize(weight, scale)
    want = x.double() @ weight.double().t()
    for y in (w8a8_linear(x.half(), stored, scale), cpu_ops.w8a16_linear(x.half(), stored, scale, None)):
        for rows in (slice(0, 4), slice(4, 8)):
            assert relative_error(y[rows], want[rows]) < 0.02


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
def test_w8a16_linear(dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_ops, "_WEIGHT_SLICE", 1 << 12)  # several slices, the last one short
    for m, k, n in SHAPES:
        x, weight = hard_rows(m, k).to(dtype).nan_to_num(posinf=6e4), codes(n, k, seed=7)
        scale, bias = torch.full((n, 1), 0.003), torch.linspace(-1, 1, n)
        got, want = (f(x, weight, scale, bias).double() for f in (cpu_ops.w8a16_linear, reference.w8a16_linear))
        error = (got - want).norm(dim=1) / want.norm(dim=1).clamp_min(1e-30)
        assert (error < tolerance).all(), error.max()


def test_the_reported_kernel_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    if matmul.cpu_int8_kernel() == matmul.FLOAT32:
        pytest.skip("this CPU has no exact integer kernel")
    called, real = [], torch._int_mm
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: called.append((a.dtype, b.dtype)) or real(a, b))
    w8a8_linear(torch.randn(5, 64), codes(8, 64), torch.ones(8, 1))
    assert called == [(torch.int8, torch.int8)]


FAULTS = """
import resource, sys, torch
from vggt_int8.kernels.cpu import memory
torch.set_num_threads(1)
kept = memory.keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        blocks = [torch.ones(31 << 20, dtype=torch.uint8) for _ in range(4)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(kept, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of the GNU C library")
@pytest.mark.slow
@pytest.mark.parametrize("variable", [None, "GLIBC_TUNABLES"])
def test_freed_memory_is_kept_unless_the_environment_says_otherwise(variable: str | None) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    if variable is not None:
        env[variable] = "glibc.malloc.trim_threshold=131072"
    run = subprocess.run([sys.executable, "-c", FAULTS], env=env, capture_output=True, text=True, check=True)
    kept, faults = run.stdout.split()
    assert kept == str(variable is None)
    pages = 10 * 4 * (31 << 20) // resource.getpagesize()
    assert int(faults) < pages / 100 if variable is None else int(faults) > 10  # huge pages count once


@pytest.mark.parametrize("variable", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"])
def test_a_library_that_is_configured_by_the_environment_is_left_alone(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "131072")
    monkeypatch.setattr(memory.ctypes, "CDLL", None)  # nothing of it is called
    assert memory.keep_freed_memory.__wrapped__() is False


SURPLUS = """
import torch
from vggt_int8.kernels.cpu import memory
torch.set_num_threads(1)
memory.keep_freed_memory()
MB = 1 << 20
def calls(megabytes):  # of 20 MB blocks, with a larger one that stays in use above them
    blocks = [torch.ones(20 * MB, dtype=torch.uint8) for _ in range(megabytes // 20)]
    stays = torch.ones(25 * MB, dtype=torch.uint8)
    del blocks
    return stays
before, stay = memory.unused_bytes(), []
for megabytes in (200, 400, 200):
    stay.append(calls(megabytes))
    freed = memory.unused_bytes() - before
    gave = memory.give_back_surplus()
    print(freed // MB, gave, (memory.unused_bytes() - before) // MB)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of the GNU C library")
def test_no_more_freed_memory_is_kept_than_said() -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    run = subprocess.run([sys.executable, "-c", SURPLUS], env=env, capture_output=True, text=True, check=True)
    rows = [(int(freed), gave == "True", int(kept)) for freed, gave, kept in map(str.split, run.stdout.splitlines())]
    for (freed, gave, kept), megabytes in zip(rows, (200, 400, 200), strict=True):
        assert freed > megabytes - 30, "so much was freed, and lies below a block in use"
        assert gave == (megabytes == 400)
        assert kept < 256
        assert kept < 30 if gave else kept > megabytes - 30


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="oneDNN's instruction sets named here are x86's")
def test_probe_rejects_a_cpu_that_saturates() -> None:
    """Without VNNI oneDNN adds pairs of products in 16 bits: the probe must see it and choose float32.

    So it must where PyTorch finds no AVX-512 and multiplies in a loop of its own, which is exact and slow. Which of the
    two this CPU does is seen in a product of the largest codes.
    """
    code = """
import torch
from vggt_int8 import machine
from vggt_int8.kernels.cpu import matmul
codes = torch.full((64, 4096), 127, dtype=torch.int8)
print((torch._int_mm(codes, codes.T) == 127 * 127 * 4096).all().item(), machine.int_mm_is_exact())
print(matmul.cpu_int8_kernel() == matmul.FLOAT32)
"""
    env = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", compiled.SETTING: "off"}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    exact, *found = run.stdout.split()
    assert found == [exact, "True"]
