"""The CPU kernels equal the reference exactly, on every candidate kernel and on CPUs that saturate."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from vggt_int8.kernels import cpu, reference

KERNELS = [cpu.U8S8, cpu.S8S8, cpu.FLOAT32]
SHAPES = [(1, 64, 8), (37, 37, 9), (16, 4096, 1), (130, 1037, 65), (1041, 64, 33), (0, 16, 8)]  # M, K, N


def usable(kernel: str) -> None:
    if not cpu._is_exact(kernel):
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
def test_integer_product_is_exact(kernel: str, m: int, k: int, n: int) -> None:
    usable(kernel)
    x, weight = codes(m, k), codes(n, k, seed=2)
    x[: m // 2] = 127
    weight[: n // 2] = -127
    assert torch.equal(cpu.int8_matmul(x, cpu.prepare(weight, kernel)), reference.int8_matmul(x, weight))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("static", [False, True])
def test_w8a8_linear_equals_reference(kernel: str, dtype: torch.dtype, static: bool) -> None:
    usable(kernel)
    for m, k, n in SHAPES:
        x, weight = hard_rows(m, k).to(dtype), codes(n, k, seed=3)
        scale = torch.rand(n, 1, generator=torch.Generator().manual_seed(4)) * 0.01
        input_scale = torch.tensor(0.02) if static else None
        for bias in (None, torch.linspace(-3, 3, n).half()):
            got = cpu.w8a8_linear_cpu(x, cpu.prepare(weight, kernel), scale, bias, input_scale)
            want = reference.w8a8_linear(x, weight, scale, bias, input_scale)
            assert got.dtype == dtype
            torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.parametrize("input_scale", [None, torch.tensor(0.02)])
def test_w8a8_linear_shows_nan_and_inf(input_scale: torch.Tensor | None) -> None:
    x = torch.ones(3, 64)
    x[0, 5], x[1, 5] = float("nan"), float("inf")
    y = cpu.w8a8_linear_cpu(x, cpu.prepare(codes(8, 64)), torch.ones(8, 1), None, input_scale)
    assert not y[:2].isfinite().any()
    assert y[2].isfinite().all()


def test_fp16_result_fits_where_a_partial_product_does_not() -> None:
    x = torch.randn(8, 4096, generator=torch.Generator().manual_seed(5)) * 40
    x[4:] *= 1e-3 / 40
    weight = torch.randn(16, 4096, generator=torch.Generator().manual_seed(6)) * 0.01
    scale = reference.absmax_scale(weight, dim=1)
    prepared = cpu.prepare(reference.quantize(weight, scale))
    want = x.double() @ weight.double().t()
    for y in (
        cpu.w8a8_linear_cpu(x.half(), prepared, scale, None),
        cpu.w8a16_linear_cpu(x.half(), prepared.codes, scale, None),
    ):
        for rows in (slice(0, 4), slice(4, 8)):
            assert (y[rows].double() - want[rows]).norm() / want[rows].norm() < 0.02


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
def test_w8a16_linear(dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_WEIGHT_SLICE", 1 << 12)  # several slices, the last one short
    for m, k, n in SHAPES:
        x, weight = hard_rows(m, k).to(dtype).nan_to_num(posinf=6e4), codes(n, k, seed=7)
        scale, bias = torch.full((n, 1), 0.003), torch.linspace(-1, 1, n)
        got, want = (f(x, weight, scale, bias).double() for f in (cpu.w8a16_linear_cpu, reference.w8a16_linear))
        error = (got - want).norm(dim=1) / want.norm(dim=1).clamp_min(1e-30)
        assert (error < tolerance).all(), error.max()


def test_the_reported_kernel_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    if cpu.cpu_int8_kernel() == cpu.FLOAT32:
        pytest.skip("this CPU has no exact integer kernel")
    called = []
    real = torch._int_mm
    prepared = cpu.prepare(codes(8, 64))
    monkeypatch.setattr(torch, "_int_mm", lambda a, b, out: called.append(a.dtype) or real(a, b, out=out))
    cpu.w8a8_linear_cpu(torch.randn(5, 64), prepared, torch.ones(8, 1), None)
    assert called == [torch.uint8 if cpu.cpu_int8_kernel() == cpu.U8S8 else torch.int8]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="oneDNN's instruction sets named here are x86's")
def test_probe_rejects_a_cpu_that_saturates() -> None:
    """Without VNNI oneDNN adds pairs of products in 16 bits: the probe must see it and choose float32."""
    code = (
        "from vggt_int8.kernels import cpu;"
        "print(cpu._is_exact(cpu.U8S8), cpu._is_exact(cpu.S8S8), cpu.cpu_int8_kernel() == cpu.FLOAT32)"
    )
    env = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False", "True"]


def test_prepare_refuses_what_is_not_codes() -> None:
    with pytest.raises(ValueError, match=r"int8 matrix \[N, K\] on the CPU, not torch.float32 \[4, 8\]"):
        cpu.prepare(torch.zeros(4, 8))
