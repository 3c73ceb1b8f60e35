"""Rows to codes and LayerNorm: Triton against the definition, with rows of zeros, of one outlier, of extreme scale."""

from itertools import product

import pytest
import torch

from tests.kernels.cuda.cases import (
    DEVICE,
    INTERPRETED,
    assert_same,
    assert_same_codes,
    hard_rows,
    pairwise,
    quick,
    rand,
    static_scales_of,
)
from vggt_int8.kernels import reference
from vggt_int8.kernels.cuda import triton_norm
from vggt_int8.recipe import Scheme

FULL = [] if INTERPRETED else [(1041, 1024), (3 * 1374, 4096)]
ROTATED = [] if INTERPRETED else [(64, 8192, 256), (1041, 2048, 256)]  # M, K, group
SHAPES = [(1, 64), (37, 37), (33, 96), (5, 1024), *FULL]  # M, K


DTYPES = [torch.float16, torch.bfloat16, torch.float32]
# Every shape is quick in one dtype, and every dtype for one shape.
ROWS = quick(
    lambda case: case[0][0] == DTYPES[0] or case[0][1] == SHAPES[2],
    pairwise(list(product(DTYPES, SHAPES)), ["", "one", "take turns", "for each row"], [False, True]),
)


@pytest.mark.parametrize("case", ROWS, ids=str)
def test_rows_to_codes(case: tuple[tuple[torch.dtype, tuple[int, int]], str, bool]) -> None:
    (dtype, (m, k)), static, rotated = case
    x = hard_rows(m, k, dtype)
    weight, bias = rand(k, dtype=dtype) * 0.2 + 1, rand(k, dtype=dtype)
    scale = static_scales_of(m)[static] if static else None
    rotation = Scheme(rotation=256).rotation_of(k) if rotated else 0
    assert_same_codes(triton_norm.quantize_rows(x, scale, rotation), reference.quantize_rows(x, scale, rotation))
    norm = (weight, bias, 1e-5, scale, rotation)
    assert_same_codes(triton_norm.layer_norm_quantize(x, *norm), reference.layer_norm_quantize(x, *norm))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("m", "k", "group"), [(1, 64, 64), (9, 96, 32), (37, 6, 2), (5, 1024, 256), *ROTATED])
def test_rotated_rows(m: int, k: int, group: int, dtype: torch.dtype) -> None:
    x = hard_rows(m, k, dtype)
    assert_same(triton_norm.rotate_rows(x, group), reference.rotate_rows(x, group))


def test_nan_and_inf_reach_the_scale() -> None:
    x = torch.ones(4, 64, device=DEVICE)
    x[1, 3], x[2, 5] = float("nan"), float("inf")
    weight, bias = torch.ones(64, device=DEVICE), torch.zeros(64, device=DEVICE)
    for scale in (None, torch.tensor(0.1, device=DEVICE)):
        for result in (
            triton_norm.quantize_rows(x, scale),
            triton_norm.layer_norm_quantize(x, weight, bias, 1e-5, scale),
        ):
            assert result[1].isfinite().flatten().tolist() == [True, False, False, True]


@pytest.mark.parametrize(
    ("frames", "tokens", "skip", "channels"), [(1, 1, 0, 64), (3, 9, 5, 37), (2, 7, 1, 1024), (1, 5, 5, 8)]
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_layer_norm_of_two_halves(frames: int, tokens: int, skip: int, channels: int, dtype: torch.dtype) -> None:
    rows = [hard_rows(frames * tokens, channels, dtype).view(frames, tokens, channels) for _ in range(2)]
    norm = (rand(2 * channels, dtype=dtype) + 1, rand(2 * channels, dtype=dtype), 1e-5)
    got = triton_norm.layer_norm_halves(*rows, skip, *norm)
    assert_same(got, reference.layer_norm_halves(*rows, skip, *norm))
