"""Every backend computes the reference's definition: all schemes, dtypes, odd shapes, hard rows."""

import functools
import os
import platform
import re
import sys
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.quant.numbers import randn
from tests.usable import RUNS, running, skip_unless_usable
from tests.warm import python
from vggt_int8.kernels import reference
from vggt_int8.kernels.cpu import compiled, matmul
from vggt_int8.machine import int_mm_is_exact, pytorch_uses_avx512
from vggt_int8.quant import BACKENDS, BackendError, Int8Linear, backends
from vggt_int8.quant.backends import auto_reason, check_backend_name, get_backend, resolve
from vggt_int8.recipe import Scheme

SCHEMES = {
    "none": Scheme("none"),
    "dynamic": Scheme("dynamic"),
    "static": Scheme("static"),
    "llm_int8": Scheme("dynamic", 6.0),
}
PAIRS = [(scheme, backend) for scheme in SCHEMES for backend in running(scheme)]
CPU_AND_GPU = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(1, 9, 1), (1, 567, 130), (16, 37, 9), (17, 9, 130), (37, 567, 9), (37, 64, 64), (37, 1037, 1)]  # M, K, N


def usable(scheme: str, backend: str, device: str) -> None:
    skip_unless_usable(backend, SCHEMES[scheme], device)


def make(scheme: str, backend: str, source: nn.Linear, absmax: float = 1.0, threshold: float = 6.0) -> Int8Linear:
    activations = "dynamic" if scheme == "llm_int8" else scheme
    return Int8Linear.from_linear(
        source,
        activations,
        backend,
        input_scale=absmax / 127 if scheme == "static" else None,
        outlier_threshold=threshold if scheme == "llm_int8" else 0.0,
    ).to(source.weight.device)


@pytest.mark.parametrize(("scheme", "backend"), PAIRS)
@pytest.mark.parametrize("device", CPU_AND_GPU)
def test_gradients_reach_the_input_as_through_the_float_layer(scheme: str, backend: str, device: str) -> None:
    usable(scheme, backend, device)
    layer = make(scheme, backend, nn.Linear(64, 24), threshold=2.0).to(device)
    x = randn(7, 64).to(device).requires_grad_()
    y = layer(x)
    with torch.no_grad():
        assert torch.equal(y, layer(x))
    (got,) = torch.autograd.grad(y, x, randn(7, 24, seed=1).to(device))
    want = randn(7, 24, seed=1).to(device) @ (layer.codes.float() * layer.weight_scale)
    torch.testing.assert_close(got, want)


def definition(scheme: str, layer: Int8Linear, x: Tensor) -> Tensor:
    """The reference on the CPU in fp32."""
    weight, scale = layer.codes.cpu(), layer.weight_scale.cpu()
    bias = None if layer.bias is None else layer.bias.cpu()
    x = x.cpu().float()
    if scheme == "none":
        return reference.w8a16_linear(x, weight, scale, bias)
    if scheme == "llm_int8":
        return reference.llm_int8_linear(x, weight, scale, bias, layer.scheme.outlier_threshold)
    input_scale = None if layer.input_scale is None else layer.input_scale.cpu()
    return reference.w8a8_linear(x, weight, scale, bias, input_scale)


def hard_rows(m: int, k: int) -> Tensor:
    """Normal rows; from 16 rows on also zeros, one outlier, small and very small ones."""
    x = randn(m, k, seed=1)
    if m >= 16:
        x[1] = 0
        x[2, k // 2] = 3e4
        x[3:6] *= 1e-3
        x[6] *= 20
    return x


def bound(scheme: str, backend: str, dtype: torch.dtype, device: str) -> float:
    """Relative to the size that a row of the result is expected to have."""
    rounding = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
    own_codes = backend == "torchao" and scheme == "dynamic"  # absmax / 127.5, codes down to -128
    fused = backend == "bitsandbytes" and device == "cuda" and dtype == torch.float16
    # Two independent roundings to codes of about 0.01 each; three sigma, since some rows have one value.
    return rounding + (0.03 if own_codes else 0.004 if fused else 0.0)


@pytest.mark.parametrize("device", CPU_AND_GPU)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("scheme", "backend"), PAIRS)
def test_a_backend_computes_the_definition(scheme: str, backend: str, dtype: torch.dtype, device: str) -> None:
    usable(scheme, backend, device)
    limit = bound(scheme, backend, dtype, device)
    for m, k, n in SHAPES:
        source = nn.Linear(k, n, bias=False)
        source.weight.data = randn(n, k, seed=2) * 0.1
        if n > 1:
            source.weight.data[0] = 0
        x = hard_rows(m, k).to(dtype)
        layer = make(scheme, backend, source.to(device), absmax=4.0)
        y = layer(x.to(device)).cpu()
        assert (y.dtype, y.shape) == (dtype, (m, n))
        want = definition(scheme, layer, x)
        expected_size = x.float().norm(dim=1, keepdim=True) * source.weight.norm(dim=1).cpu() / k**0.5  # [M, N]
        error = (y.float() - want).abs()
        assert (error.norm(dim=1) <= limit * expected_size.norm(dim=1)).all(), (m, k, n)
        assert (error <= 3 * limit * expected_size).all(), (m, k, n)
        if n > 1:
            assert not y[:, 0].any(), "a weight row of zeros"
        if m >= 16:
            assert not y[1].any(), "an input row of zeros"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("scheme", "backend"),
    [("dynamic", "native"), ("static", "native"), ("dynamic", "bitsandbytes"), ("llm_int8", "bitsandbytes")],
)
def test_on_the_cpu_equal_not_close(scheme: str, backend: str, dtype: torch.dtype) -> None:
    usable(scheme, backend, "cpu")
    for m, k, n in SHAPES:
        source = nn.Linear(k, n)
        x = hard_rows(m, k).to(dtype)
        layer = make(scheme, backend, source, absmax=4.0)
        assert torch.equal(layer(x), definition(scheme, layer, x).to(dtype))


@pytest.mark.parametrize("device", CPU_AND_GPU)
@pytest.mark.parametrize(("scheme", "backend"), PAIRS)
def test_the_bias_is_added_once_and_in_fp32(scheme: str, backend: str, device: str) -> None:
    usable(scheme, backend, device)
    source = nn.Linear(64, 24)
    source.bias.data = torch.linspace(-100, 100, 24)
    x = randn(17, 64)
    layer = make(scheme, backend, source.to(device), absmax=4.0)
    without = make(scheme, backend, source, absmax=4.0)
    without.bias = None
    x = x.to(device)
    torch.testing.assert_close(layer(x), without(x) + layer.bias.float(), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("device", CPU_AND_GPU)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("scheme", "backend"), PAIRS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_inf_reach_the_result(scheme: str, backend: str, value: float, dtype: torch.dtype, device: str) -> None:
    usable(scheme, backend, device)
    source = nn.Linear(567, 9)
    source.weight.data = randn(9, 567, seed=3)
    layer = make(scheme, backend, source.to(device), absmax=4.0)
    x = randn(20, 567).clamp(-4, 4).to(dtype)
    x[3, 5] = value
    y = layer(x.to(device)).cpu()
    assert not y[3].isfinite().any()
    others = torch.cat([y[:3], y[4:]])
    # LLM.int8() multiplies whole columns in floats. Weight-only layers use PyTorch's own product: in bf16 on a CPU
    # with AMX it reads a few numbers of the next row, times zero, where K is no multiple of its tiles.
    spread = scheme == "none" and not F.linear(x, source.weight.to(dtype).cpu())[2].isfinite().all()
    assert others.isfinite().all() or scheme == "llm_int8" or spread


@pytest.mark.parametrize("device", CPU_AND_GPU)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("scheme", "backend"), PAIRS)
def test_results_that_fit_do_not_overflow(scheme: str, backend: str, dtype: torch.dtype, device: str) -> None:
    """K = 4096, inputs of sigma 40, |y| up to about 103, with tokens of sigma 1e-3 in the same batch."""
    usable(scheme, backend, device)
    m, k, n = 34, 4096, 64
    source = nn.Linear(k, n, bias=False)
    source.weight.data = randn(n, k, seed=4) * 0.0125
    x = randn(m, k, seed=5) * 40
    small = torch.arange(m) % 2 == 1
    x[small] *= 1e-3 / 40
    x = x.to(dtype)
    layer = make(scheme, backend, source.to(device), absmax=x.abs().max().item())
    want = x.double() @ (layer.codes.cpu().double() * layer.weight_scale.cpu().double()).t()
    assert 90 < want.abs().max() < 120
    before_the_weight_scale = want.abs() / layer.weight_scale.cpu().view(1, -1)
    assert before_the_weight_scale.max() > 65504, "the case must overflow an fp16 epilogue in the wrong order"
    y = layer(x.to(device)).cpu()
    assert y.isfinite().all()
    limit = {torch.float32: 1e-6, torch.float16: 6e-4, torch.bfloat16: 5e-3}[dtype]
    limit += 0.015 if scheme in ("dynamic", "static") else 1e-3
    error = y.double() - want
    checked = torch.ones(m, dtype=torch.bool) if scheme != "static" else ~small  # one scale cannot serve both
    assert (error[checked].norm(dim=1) <= limit * want[checked].norm(dim=1)).all()
    assert (error[checked].abs().amax(1) <= 2 * limit * want[checked].abs().amax(1)).all()
    assert (y[~checked].abs() < 0.1).all()


@pytest.mark.parametrize("device", CPU_AND_GPU)
@pytest.mark.parametrize(("scheme", "backend"), [pair for pair in PAIRS if pair[0] != "static"])
def test_very_small_rows_keep_their_precision(scheme: str, backend: str, device: str) -> None:
    usable(scheme, backend, device)
    source = nn.Linear(256, 64, bias=False)
    layer = make(scheme, backend, source.to(device))
    x = randn(8, 256)
    want = layer(x.to(device))
    for factor in (2.0**-20, 2.0**-40):
        torch.testing.assert_close(layer(x.to(device) * factor) / factor, want, rtol=1e-4, atol=1e-5)


class Ops(TorchDispatchMode):
    """Counts the operators that run, by name, with the dtypes of their tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        dtypes = "·".join(str(a.dtype).removeprefix("torch.") for a in args if isinstance(a, Tensor))
        self.seen[f"{func.name().split('.')[0]} {dtypes}"] += 1
        return func(*args, **(kwargs or {}))


# What runs, as the report names it, for layers whose product the report claims to be in integers on the CPU.
CALLED = [
    ("dynamic", "torchao", "torchao Int8Tensor", "aten::_int_mm"),
    ("static", "torchao", "torchao Int8Tensor", "aten::_int_mm"),
    ("dynamic", "bitsandbytes", "int8_linear_matmul", "bitsandbytes::int8_linear_matmul int8·int8"),
    ("llm_int8", "bitsandbytes", "int8_linear_matmul", "bitsandbytes::int8_linear_matmul int8·int8"),
    ("dynamic", "reference", "int32 matmul", "aten::mm int32·int32"),
    ("static", "reference", "int32 matmul", "aten::mm int32·int32"),
    ("llm_int8", "reference", "int32 matmul", "aten::mm int32·int32"),
]


@pytest.mark.parametrize(("scheme", "backend", "reported", "op"), CALLED)
def test_integers_are_multiplied_by_the_op_that_the_report_names(
    scheme: str, backend: str, reported: str, op: str
) -> None:
    usable(scheme, backend, "cpu")
    layer = make(scheme, backend, nn.Linear(64, 24))
    layer(randn(20, 64))  # probes and preparations happen once
    with Ops() as ops:
        layer(randn(20, 64))
    assert reported in layer.kernel("cpu")
    assert sum(count for name, count in ops.seen.items() if name.startswith(op)) == 1, ops.seen
    float_products = [name for name in ops.seen if name.startswith(("aten::mm float", "aten::addmm", "aten::linear"))]
    assert scheme == "llm_int8" or not float_products


@pytest.mark.parametrize("scheme", ["dynamic", "static"])
def test_native_multiplies_integers_on_a_cpu(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its operators are whole kernels, into which `Ops` does not see."""
    if matmul.cpu_int8_kernel() == matmul.FLOAT32:
        pytest.skip("this CPU has no exact integer kernel, and the report says so")
    layer = make(scheme, "native", nn.Linear(64, 24))
    layer(randn(20, 64))  # probes and preparations happen once
    real, dtypes = torch._int_mm, []
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: dtypes.append((a.dtype, b.dtype)) or real(a, b))
    called, call = [], compiled.call
    monkeypatch.setattr(compiled, "call", lambda name, *rest: called.append(name) or call(name, *rest))
    with torch.profiler.profile() as profile:
        layer(randn(20, 64))
    assert layer.kernel("cpu") == matmul.cpu_int8_kernel()
    if compiled.library() is not None:
        assert called == ["vi_quantize_rows", "vi_linear"]
        assert not dtypes
    else:
        assert dtypes == [(torch.int8, torch.int8)]
    assert not {event.name for event in profile.events()} & {"aten::mm", "aten::addmm", "aten::linear"}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_table_of_the_design(scheme: str, backend: str) -> None:
    layer = make(scheme, backend, nn.Linear(16, 8))
    if scheme in RUNS[backend]:
        usable(scheme, backend, "cpu")
        assert layer(randn(3, 16)).shape == (3, 8)
        assert layer.resolved_backend("cpu").name == backend
    else:
        with pytest.raises(
            BackendError,
            match=re.escape(f"backend '{backend}' cannot run {layer.scheme.label}"),
        ):
            layer(randn(3, 16))


@pytest.mark.parametrize(
    ("scheme", "order"),
    [
        (Scheme("none"), ["native", "torchao", "reference"]),
        (Scheme("dynamic"), ["native", "bitsandbytes", "torchao", "reference"]),
        (Scheme("static"), ["native", "torchao", "reference"]),
        (Scheme("dynamic", 6.0), ["bitsandbytes", "reference"]),
    ],
    ids=lambda value: value.label if isinstance(value, Scheme) else None,
)
def test_auto_on_cuda_tries_the_fastest_first(
    monkeypatch: pytest.MonkeyPatch, scheme: Scheme, order: list[str]
) -> None:
    """By whole forward passes on an H200 (`benchmarks/README.md`); also on machines that lack the first ones."""

    def backends_without(lacking: list[str]) -> None:
        def get(name: str) -> SimpleNamespace:
            return SimpleNamespace(name=name, unsupported=lambda *_: "it is not here" if name in lacking else None)

        monkeypatch.setattr(backends, "get_backend", get)
        resolve.cache_clear()

    try:
        for number, name in enumerate(order):
            backends_without(order[:number])
            assert resolve("auto", scheme, "cuda").name == name
            assert [word in auto_reason(scheme, "cuda") for word in order[: number + 1]] == [True] * (number + 1)
        backends_without(order)
        with pytest.raises(BackendError, match="it is not here"):
            resolve("auto", scheme, "cuda")
    finally:
        resolve.cache_clear()


def test_auto_takes_a_backend_and_says_which() -> None:
    names = {scheme: resolve("auto", SCHEMES[scheme], "cpu").name for scheme in SCHEMES}
    in_floats = not pytorch_uses_avx512()  # bitsandbytes asks the same
    llm = "bitsandbytes" if in_floats or int_mm_is_exact() else "reference"
    assert names == {"none": "native", "dynamic": "native", "static": "native", "llm_int8": llm}
    assert auto_reason(SCHEMES["dynamic"], "cpu") == "auto: native"
    with pytest.raises(BackendError, match="on 'cpu' and 'cuda', not on 'mps'"):
        resolve("auto", SCHEMES["dynamic"], "mps")


def test_names() -> None:
    for name in ("auto", *BACKENDS):
        check_backend_name(name)
    with pytest.raises(BackendError, match=r"no backend 'nativ'; choose 'auto' or one of native, torchao"):
        get_backend("nativ")


def test_a_library_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = functools.cache(get_backend.__wrapped__)
    monkeypatch.delitem(sys.modules, "vggt_int8.quant.backends.torchao_backend", raising=False)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(BackendError, match=r"'torchao' cannot be used here: .*torchao.* Choose another"):
        fresh("torchao")


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="oneDNN's instruction sets named here are x86's")
def test_libraries_are_refused_where_their_product_saturates() -> None:
    """Without VNNI `torch._int_mm` adds pairs of products in 16 bits, and torchao and bitsandbytes do not look.

    PyTorch hands the product to oneDNN only on CPUs with AVX-512; elsewhere it has a slow loop, which is exact, and
    bitsandbytes multiplies floats. Importing the libraries prints a lot, of which nothing may reach the user.
    """
    code = """
from torch import _int_mm, int8, nn, ones
from vggt_int8.quant import BackendError, Int8Linear
codes = ones(64, 4096, dtype=int8) * 127
print((_int_mm(codes, codes.T) == 127 * 127 * 4096).all().item())
linear = nn.Linear(512, 16, bias=False)
linear.weight.data.fill_(1)
for backend, threshold in (("auto", 0), ("native", 0), ("torchao", 0), ("bitsandbytes", 0), ("auto", 6.0)):
    try:
        y = Int8Linear.from_linear(linear, backend=backend, outlier_threshold=threshold)(ones(3, 512))
        print(round(y[0, 0].item(), 3))
    except BackendError as error:
        print("saturates" in str(error))
"""
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    process = python("-c", code, env=environment)
    assert process.returncode == 0, process.stderr
    exact, auto, native, torchao, bitsandbytes, llm_int8 = process.stdout.split()
    assert auto == native == llm_int8 == "512.0"
    if exact == "False":
        assert torchao == "True"
    else:
        assert float(torchao) == pytest.approx(512, rel=1 / 127), "its codes are -128 to 127"
    in_floats = not pytorch_uses_avx512()
    assert bitsandbytes == ("512.0" if in_floats or exact == "True" else "True")
    assert process.stderr == ""
