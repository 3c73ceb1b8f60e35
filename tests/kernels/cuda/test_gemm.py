"""INT8 GEMM: Triton against the definition at odd sizes, by every kind of tile and epilogue."""

import pytest
import torch
import torch.nn.functional as F

from tests.kernels.cuda.cases import (
    DEVICE,
    INTERPRETED,
    TILES,
    assert_same,
    assert_same_codes,
    codes,
    hard_rows,
    has_descriptors,
    pairwise,
    quick,
    rand,
    static_scales_of,
)
from vggt_int8.difference import relative_error
from vggt_int8.kernels import reference
from vggt_int8.kernels.cuda import triton_gemm, triton_norm, triton_product, triton_weight_only
from vggt_int8.kernels.cuda.tiles import Tile
from vggt_int8.kernels.epilogue import Epilogue


@pytest.mark.parametrize("tile", quick(TILES[-1].__eq__, TILES), ids=str)
@pytest.mark.parametrize("epilogue", ["bias", "gelu", "residual"])
def test_int8_gemm(tile: Tile, epilogue: str) -> None:
    if tile.tma and not has_descriptors():
        pytest.skip("tensor descriptors need compute capability 9.0")
    sizes = [(1, 48, 64), (37, 48, 80)] + ([] if tile.tma else [(37, 9, 37)])  # M, N, K
    sizes += [] if INTERPRETED else [(1041, 1024, 4096), (3 * 1374, 3072, 1024)]
    for m, n, k in sizes:
        x, x_scale = reference.quantize_rows(hard_rows(m, k, torch.float32))
        operands = (x, x_scale, codes(n, k), torch.rand(n, 1, device=DEVICE) * 0.01)
        bias = rand(n).half()
        extra = {
            "bias": {},
            "gelu": {"gelu": True},
            "residual": {"gamma": rand(n).half(), "residual": rand(m, n).half()},
        }[epilogue]
        for dtype in (torch.float16, torch.bfloat16):
            follows = Epilogue(bias, dtype, **extra)
            got = triton_gemm.int8_gemm(*operands, follows, tile)
            want = reference.int8_gemm(*operands, follows)
            assert_same(got, want)


@pytest.mark.parametrize(
    "case",
    quick(
        lambda case: case[0].split_k > 1,
        pairwise([t for t in TILES if t.parts == 1], [0, 8, 16], ["one", "take turns", "for each row"]),
    ),
    ids=str,
)
def test_static_codes(case: tuple[Tile, int, str]) -> None:
    """Rows of NaN too: codes cannot carry it, so scales do."""
    tile, rotation, static = case
    if tile.tma and not has_descriptors():
        pytest.skip("tensor descriptors need compute capability 9.0")
    for m, n, k in [(1, 48, 64), (39, 48, 80)] + ([] if INTERPRETED else [(1041, 4096, 1024)]):
        x, x_scale = reference.quantize_rows(hard_rows(m, k, torch.float32))
        x_scale[m // 2] = float("nan") if m > 1 else 0.01
        operands = (x, x_scale, codes(n, k), torch.rand(n, 1, device=DEVICE) * 0.01)
        scale = static_scales_of(m)[static] * 20
        follows = Epilogue(rand(n).half(), torch.float16, gelu=True, out_scale=scale, rotation=rotation)
        got = triton_gemm.int8_gemm_codes(*operands, follows, tile)
        want = reference.int8_gemm_quantize(*operands, follows)
        assert torch.equal(got[1].isnan(), want[1].isnan())
        finite = ~want[1].isnan().flatten()
        assert_same_codes((got[0][finite], got[1][finite]), (want[0][finite], want[1][finite]))


def test_gelu_over_its_whole_range() -> None:
    """Through a product with one code of 1, whose sum is the value to look at once its scale is applied."""
    x = torch.cat([torch.linspace(-12, 12, 1000), torch.tensor([0.0, 1e-6, -1e-6, 60.0, -60.0, 3e7, -3e7])])
    ones = torch.zeros(1, 64, device=DEVICE, dtype=torch.int8)
    ones[0, 0] = 1
    operands = (ones.expand(len(x), -1).contiguous(), x.to(DEVICE)[:, None], ones.expand(16, -1).contiguous())
    operands = (*operands, torch.ones(16, 1, device=DEVICE))
    got = triton_gemm.int8_gemm(*operands, Epilogue(None, torch.float32, gelu=True), TILES[0])[:, 0]
    torch.testing.assert_close(got.double().cpu(), F.gelu(x.double()), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_int8_gemm_into_the_residual(tile: Tile) -> None:
    if tile.tma and not has_descriptors():
        pytest.skip("tensor descriptors need compute capability 9.0")
    m, n, k = (37, 48, 80) if INTERPRETED else (1041, 1024, 4096)
    x, x_scale = reference.quantize_rows(hard_rows(m, k, torch.float32))
    operands = (x, x_scale, codes(n, k), torch.rand(n, 1, device=DEVICE) * 0.01)
    residual = rand(m, n).half()
    epilogue = Epilogue(rand(n).half(), torch.float16, gamma=rand(n).half(), residual=residual)
    want = reference.int8_gemm(*operands, epilogue)
    triton_gemm.int8_gemm_into_(residual, *operands, epilogue, tile)
    assert_same(residual, want)


def test_int8_gemm_takes_a_tile_from_the_table() -> None:
    m, n, k = (5, 16, 64) if INTERPRETED else (1041, 1024, 1024)
    operands = (codes(m, k), torch.rand(m, 1, device=DEVICE), codes(n, k), torch.rand(n, 1, device=DEVICE))
    epilogue = Epilogue(None, torch.float32)
    assert_same(triton_gemm.int8_gemm(*operands, epilogue), reference.int8_gemm(*operands, epilogue))


@pytest.mark.parametrize("rotation", [0, 16])
@pytest.mark.parametrize("out_scale", [None, 5.0])
def test_product_to_codes(rotation: int, out_scale: float | None) -> None:
    m, n, k = (5, 16, 64) if INTERPRETED else (1041, 4096, 1024)
    operands = (codes(m, k), torch.rand(m, 1, device=DEVICE), codes(n, k), torch.rand(n, 1, device=DEVICE))
    static = None if out_scale is None else torch.tensor([out_scale], device=DEVICE)
    epilogue = Epilogue(None, torch.float32, gelu=True, out_scale=static, rotation=rotation)
    got_codes, got_scale = triton_product.int8_gemm_quantize(*operands, epilogue)
    want_codes, want_scale = reference.int8_gemm_quantize(*operands, epilogue)
    torch.testing.assert_close(got_scale, want_scale, rtol=1e-5, atol=0)
    assert (got_codes.int() - want_codes.int()).abs().max() <= 1  # a code on a boundary may round the other way
    assert (got_codes != want_codes).float().mean() < 0.01


def test_fp16_does_not_overflow_where_the_result_fits() -> None:
    """sum * x_scale passes 65504 although the result is small; tokens of size 1e-3 share the batch."""
    x, weight = rand(8, 4096) * 40, rand(32, 4096) * 0.01
    x[4:] *= 1e-3 / 40
    w_scale = reference.absmax_scale(weight, dim=1)
    w_codes = reference.quantize(weight, w_scale)
    x_codes, x_scale = triton_norm.quantize_rows(x.half())
    assert (reference.int8_matmul(x_codes, w_codes) * x_scale).abs().max() > 65504
    want = x.double() @ weight.double().t()
    gemm = triton_gemm.int8_gemm(x_codes, x_scale, w_codes, w_scale, Epilogue(None, torch.float16), TILES[0])
    for y in (gemm, triton_weight_only.w8a16_linear(x.half(), w_codes, w_scale, None)):
        for rows in (slice(0, 4), slice(4, 8)):
            assert relative_error(y[rows], want[rows]) < 0.02
