"""Weight-only linears and decoded weights: Triton against the definition."""

import pytest
import torch

from tests.kernels.cuda.cases import DEVICE, INTERPRETED, assert_same, codes, rand
from vggt_int8.difference import relative_error
from vggt_int8.kernels import reference
from vggt_int8.kernels.cuda import triton_weight_only
from vggt_int8.kernels.cuda.tiles import Tile
from vggt_int8.recipe import Scheme


@pytest.mark.parametrize(("m", "k"), [(1, 64), (10, 37), (17, 1024), (65, 64)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("rotated", [False, True])
def test_w8a16_linear(m: int, k: int, dtype: torch.dtype, rotated: bool) -> None:
    x, weight, scale = rand(m, k, dtype=dtype), codes(19, k), torch.rand(19, 1, device=DEVICE) * 0.01
    rotation = Scheme("none", rotation=256).rotation_of(k) if rotated else 0
    for bias in (None, rand(19).half()):
        got = triton_weight_only.w8a16_linear(x, weight, scale, bias, rotation)
        want = reference.w8a16_linear(x, weight, scale, bias, rotation)
        error = relative_error(got, want)
        assert error < (2e-6 if dtype == torch.float32 else 1e-3), error


@pytest.mark.parametrize(
    "tile", [Tile(16, 16, 32, 4, 2), Tile(16, 32, 64, 4, 3, split_k=4), Tile(16, 16, 32, 4, 2, split_k=3)], ids=str
)
def test_w8a16_linear_by_parts_of_the_reduction(tile: Tile) -> None:
    """Also where a part is empty: 37 values of K are one step of 64."""
    for m, n, k in ((1, 40, 256), (13, 33, 37), (10, 48, 200)):
        x, weight, scale = rand(m, k).half(), codes(n, k), torch.rand(n, 1, device=DEVICE) * 0.01
        for rotation in {0, Scheme("none", rotation=tile.block_k).rotation_of(k)}:
            want = reference.w8a16_linear(x, weight, scale, None, rotation)
            results = [triton_weight_only.w8a16_linear(x, weight, scale, None, rotation, tile) for _ in range(2)]
            assert relative_error(results[0], want) < 1e-3
            assert torch.equal(*results), "the order of the sum is fixed"


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 37, 9), (3, 2500, 1), (40, 16, 4)])
@pytest.mark.parametrize("axis", [0, 1])
def test_dequantize(shape: tuple[int, int, int], axis: int) -> None:
    weight = codes(*shape)
    scale = torch.rand([shape[i] if i == axis else 1 for i in range(3)], device=DEVICE)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        got = triton_weight_only.dequantize(weight, scale, dtype)
        want = reference.dequantize(weight, scale, dtype)
        if INTERPRETED and dtype == torch.bfloat16:  # which the interpreter cuts instead of rounding
            assert_same(got, want)
        else:
            assert torch.equal(got, want)
