"""INT8 linears on CUDA: every backend against the definition, in every dtype, on the shapes that libraries dislike."""

import itertools

import pytest
import torch
from torch import nn

from tests.usable import RUNS
from vggt_int8.difference import relative_error
from vggt_int8.quant import Int8Conv2d, Int8ConvTranspose2d, Int8Linear

pytestmark = pytest.mark.gpu

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
CASES = [(backend, scheme) for backend, schemes in RUNS.items() for scheme in sorted(schemes)]
SHAPES = [(1, 64, 64), (16, 64, 130), (17, 567, 384), (37, 388, 384), (1041, 1024, 1024), (5, 9, 1)]


def quantized(linear: nn.Linear, scheme: str, backend: str, x: torch.Tensor) -> Int8Linear:
    input_scale = x.abs().max().item() / 127 if scheme == "static" else None
    threshold = 6.0 if scheme == "llm_int8" else 0.0
    activations = "dynamic" if scheme == "llm_int8" else scheme
    return Int8Linear.from_linear(
        linear, activations, backend, input_scale=input_scale, outlier_threshold=threshold
    ).cuda()


@pytest.mark.parametrize(("backend", "scheme"), CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_backends_compute_the_definition(backend: str, scheme: str, dtype: torch.dtype) -> None:
    for rows, inputs, outputs in SHAPES:
        generator = torch.Generator().manual_seed(rows)
        linear = nn.Linear(inputs, outputs)
        x = torch.randn(rows, inputs, generator=generator).to(dtype)
        expected = quantized(linear, scheme, "reference", x)(x.double().float().cuda())
        y = quantized(linear, scheme, backend, x)(x.cuda())
        assert y.dtype == dtype
        error = relative_error(y, expected)
        # torchao's codes reach -128 … 127 with its own scale, so they differ from ours by rounding.
        limit = 0.012 if backend == "torchao" and scheme == "dynamic" else 1e-3
        limit += 2 * torch.finfo(dtype).eps
        assert error < limit, f"{rows} x {inputs} -> {outputs}: relative error {error:.5f}"


@pytest.mark.parametrize(("backend", "scheme"), CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_overflow_and_small_tokens_survive(backend: str, scheme: str, dtype: torch.dtype) -> None:
    # int32 * x_scale alone is above 65504 here, the true results are below 1000.
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(4096, 256)
    x = torch.randn(64, 4096, generator=generator) * 40
    x[:8] *= 1e-3 / 40
    x = x.to(dtype)
    exact = x.double() @ linear.weight.double().t() + linear.bias.double()
    y = quantized(linear, scheme, backend, x)(x.cuda()).double().cpu()
    assert bool(y.isfinite().all())
    error = (y - exact).norm(dim=1) / exact.norm(dim=1)
    assert error[8:].max() < 0.03
    if scheme != "static":  # one scale for all tokens cannot serve both kinds
        assert error[:8].max() < 0.03


@pytest.mark.parametrize(("backend", "scheme"), CASES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_values_reach_the_result(backend: str, scheme: str, value: float) -> None:
    linear = nn.Linear(64, 32)
    x = torch.randn(40, 64, dtype=torch.float16)
    layer = quantized(linear, scheme, backend, x)
    x[3, 5] = value
    y = layer(x.cuda())
    assert not bool(y[3].isfinite().any())


def test_convolutions_match_the_float_ones() -> None:
    for dtype, transposed in itertools.product(DTYPES, (False, True)):
        conv = (nn.ConvTranspose2d(64, 32, 4, 4) if transposed else nn.Conv2d(64, 32, 3, 2, 1)).cuda()
        layer = (Int8ConvTranspose2d if transposed else Int8Conv2d).from_conv(conv)
        x = torch.randn(2, 64, 28, 37, device="cuda", dtype=dtype)
        with torch.no_grad():
            expected = conv(x.float())
        error = relative_error(layer(x), expected)
        assert error < 0.01 + torch.finfo(dtype).eps
