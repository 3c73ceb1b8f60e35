"""Cases for the Triton kernels, on a GPU or in Triton's interpreter; `test_triton.py` runs this file in a
process of its own, because the interpreter must be chosen (TRITON_INTERPRET=1) before anything imports
Triton.

Every output is compared with `reference.py` at odd sizes, with rows of zeros, of one outlier and of extreme
scale.
"""

import os

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if INTERPRETED:
    # Triton 3.6 reads loop bounds with int(array of one value), which NumPy 2.4 no longer takes.
    from triton.runtime import interpreter

    patch_tensor = interpreter._patch_lang_tensor

    def patch_index(tensor: type, scope: object) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_index

from vggt_int8.difference import relative_error  # noqa: E402
from vggt_int8.kernels import reference  # noqa: E402
from vggt_int8.kernels.cuda import (  # noqa: E402
    triton_gemm,
    triton_norm,
    triton_predict,
    triton_resize,
    triton_rope,
    triton_weight_only,
)
from vggt_int8.kernels.cuda.tiles import Tile  # noqa: E402

DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
BLOCK = 16 if INTERPRETED else 64
on_gpu = pytest.mark.skipif(INTERPRETED, reason="sizes for a GPU")
FULL = [] if INTERPRETED else [(1041, 1024), (3 * 1374, 4096)]
SHAPES = [(1, 64), (37, 37), (5, 1024), *FULL]  # M, K
TILES = [
    Tile(BLOCK, BLOCK, 64, 4, 2),
    Tile(BLOCK, BLOCK, 64, 4, 2, split_k=3),
    Tile(BLOCK, 2 * BLOCK, 64, 4, 3, tma=True),
    Tile(BLOCK, BLOCK, 64, 4, 3, tma=True, per_sm=1),
    Tile(BLOCK, BLOCK, 64, 4, 3, tma=True, split_k=2, group_m=1),
    Tile(BLOCK, 2 * BLOCK, 64, 4, 3, tma=True, per_sm=1, parts=2),
]


def has_descriptors() -> bool:
    return INTERPRETED or torch.cuda.get_device_capability() >= (9, 0)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def rand(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype)


def hard_rows(m: int, k: int, dtype: torch.dtype) -> Tensor:
    x = rand(m, k, dtype=dtype) * 2
    if m >= 5:
        x[1], x[2, k // 2], x[3], x[4] = 0, 6e4, x[3] * 1e-4, x[4] * 500
    return x


def codes(*shape: int) -> Tensor:
    return torch.randint(-127, 128, shape, device=DEVICE, dtype=torch.int8)


def assert_same_codes(got: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor]) -> None:
    """Scales to fp32 rounding; a code may differ by one where rounding was a near tie."""
    torch.testing.assert_close(got[1], want[1], rtol=1e-5, atol=0)
    off = (got[0].int() - want[0].int()).abs()
    assert off.max() <= 1
    assert off.float().mean() < 1e-3


def assert_same(got: Tensor, want: Tensor) -> None:
    """Within one unit in the last place of the output's dtype; small values within rounding of the row's sums."""
    assert got.dtype == want.dtype
    got, want, eps = got.float(), want.float(), torch.finfo(want.dtype).eps
    largest = want.abs().nan_to_num(posinf=0).amax(dim=-1, keepdim=True)
    close = (got - want).abs() <= eps * want.abs() + 2e-6 * largest
    assert (close | (got == want)).all()  # equal also holds for what overflows in both


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("m", "k"), SHAPES)
@pytest.mark.parametrize("static", [False, True])
def test_rows_to_codes(m: int, k: int, dtype: torch.dtype, static: bool) -> None:
    x, y = hard_rows(m, k, dtype), rand(m, k, dtype=dtype)
    weight, bias, gamma = rand(k, dtype=dtype) * 0.2 + 1, rand(k, dtype=dtype), rand(k, dtype=dtype)
    scale = torch.tensor(0.03, device=DEVICE) if static else None
    assert_same_codes(triton_norm.quantize_rows(x, scale), reference.quantize_rows(x, scale))
    norm = (weight, bias, 1e-5, scale)
    assert_same_codes(triton_norm.layer_norm_quantize(x, *norm), reference.layer_norm_quantize(x, *norm))
    total, *got = triton_norm.add_layer_norm_quantize(x, y, gamma, *norm)
    assert_same(total, reference.residual_add(x, y, gamma))
    # From the kernel's own sum on, since one rounding of the sum more or less moves codes.
    assert_same_codes(tuple(got), reference.layer_norm_quantize(total, *norm))


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


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("epilogue", ["bias", "gelu", "residual", "static"])
def test_int8_gemm(tile: Tile, epilogue: str) -> None:
    if tile.tma and not has_descriptors():
        pytest.skip("tensor descriptors need compute capability 9.0")
    sizes = [(1, 48, 64), (37, 48, 80)] + ([] if tile.tma else [(37, 9, 37)])  # M, N, K
    sizes += [] if INTERPRETED else [(1041, 1024, 4096), (3 * 1374, 3072, 1024)]
    for m, n, k in sizes:
        x, x_scale = reference.quantize_rows(hard_rows(m, k, torch.float32))
        operands = (x, x_scale, codes(n, k), torch.rand(n, 1, device=DEVICE) * 0.01, rand(n).half())
        extra = {
            "bias": {},
            "gelu": {"gelu": True},
            "residual": {"gamma": rand(n).half(), "residual": rand(m, n).half()},
            "static": {"out_scale": torch.tensor(0.7, device=DEVICE)},
        }[epilogue]
        for dtype in (torch.float16, torch.bfloat16):
            got = triton_gemm.int8_gemm(*operands, dtype, tile=tile, **extra)
            want = reference.int8_gemm(*operands, dtype, **extra)
            if epilogue == "static":
                assert_same_codes((got, x_scale), (want, x_scale))
            else:
                assert_same(got, want)


def test_gelu_over_its_whole_range() -> None:
    """Through a product with one code of 1, whose sum is the value to look at once its scale is applied."""
    x = torch.cat([torch.linspace(-12, 12, 1000), torch.tensor([0.0, 1e-6, -1e-6, 60.0, -60.0, 3e7, -3e7])])
    ones = torch.zeros(1, 64, device=DEVICE, dtype=torch.int8)
    ones[0, 0] = 1
    operands = (ones.expand(len(x), -1).contiguous(), x.to(DEVICE)[:, None], ones.expand(16, -1).contiguous())
    operands = (*operands, torch.ones(16, 1, device=DEVICE), None)
    got = triton_gemm.int8_gemm(*operands, torch.float32, gelu=True, tile=TILES[0])[:, 0]
    torch.testing.assert_close(got.double().cpu(), F.gelu(x.double()), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_int8_gemm_into_the_residual(tile: Tile) -> None:
    if tile.tma and not has_descriptors():
        pytest.skip("tensor descriptors need compute capability 9.0")
    m, n, k = (37, 48, 80) if INTERPRETED else (1041, 1024, 4096)
    x, x_scale = reference.quantize_rows(hard_rows(m, k, torch.float32))
    operands = (x, x_scale, codes(n, k), torch.rand(n, 1, device=DEVICE) * 0.01, rand(n).half())
    gamma, residual = rand(n).half(), rand(m, n).half()
    want = reference.int8_gemm(*operands, torch.float16, False, gamma, residual)
    triton_gemm.int8_gemm_into_(residual, *operands, False, gamma, residual, tile=tile)
    assert_same(residual, want)


def test_int8_gemm_takes_a_tile_from_the_table() -> None:
    m, n, k = (5, 16, 64) if INTERPRETED else (1041, 1024, 1024)
    operands = (codes(m, k), torch.rand(m, 1, device=DEVICE), codes(n, k), torch.rand(n, 1, device=DEVICE), None)
    got = triton_gemm.int8_gemm(*operands, torch.float32)
    assert_same(got, reference.int8_gemm(*operands, torch.float32))


def test_product_to_codes() -> None:
    m, n, k = (5, 16, 64) if INTERPRETED else (1041, 4096, 1024)
    operands = (codes(m, k), torch.rand(m, 1, device=DEVICE), codes(n, k), torch.rand(n, 1, device=DEVICE), None)
    got_codes, got_scale = triton_norm.int8_gemm_quantize(*operands, torch.float32, True)
    want_codes, want_scale = reference.int8_gemm_quantize(*operands, torch.float32, True)
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
    gemm = triton_gemm.int8_gemm(x_codes, x_scale, w_codes, w_scale, None, torch.float16, tile=TILES[0])
    for y in (gemm, triton_weight_only.w8a16_linear(x.half(), w_codes, w_scale, None)):
        for rows in (slice(0, 4), slice(4, 8)):
            assert relative_error(y[rows], want[rows]) < 0.02


@pytest.mark.parametrize(("m", "k"), [(1, 64), (10, 37), (17, 1024), (65, 64)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_w8a16_linear(m: int, k: int, dtype: torch.dtype) -> None:
    x, weight, scale = rand(m, k, dtype=dtype), codes(19, k), torch.rand(19, 1, device=DEVICE) * 0.01
    for bias in (None, rand(19).half()):
        got = triton_weight_only.w8a16_linear(x, weight, scale, bias)
        want = reference.w8a16_linear(x, weight, scale, bias)
        error = relative_error(got, want)
        assert error < (2e-6 if dtype == torch.float32 else 1e-3), error


@pytest.mark.parametrize(
    "tile", [Tile(16, 16, 32, 4, 2), Tile(16, 32, 64, 4, 3, split_k=4), Tile(16, 16, 32, 4, 2, split_k=3)], ids=str
)
def test_w8a16_linear_by_parts_of_the_reduction(tile: Tile) -> None:
    """Also where a part is empty: 37 values of K are one step of 64."""
    for m, n, k in ((1, 40, 256), (13, 33, 37), (10, 48, 200)):
        x, weight, scale = rand(m, k).half(), codes(n, k), torch.rand(n, 1, device=DEVICE) * 0.01
        want = reference.w8a16_linear(x, weight, scale, None)
        results = [triton_weight_only.w8a16_linear(x, weight, scale, None, tile) for _ in range(2)]
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


@pytest.mark.parametrize(
    ("frames", "tokens", "skip", "channels"), [(1, 1, 0, 64), (3, 9, 5, 37), (2, 7, 1, 1024), (1, 5, 5, 8)]
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_layer_norm_of_two_halves(frames: int, tokens: int, skip: int, channels: int, dtype: torch.dtype) -> None:
    rows = [hard_rows(frames * tokens, channels, dtype).view(frames, tokens, channels) for _ in range(2)]
    norm = (rand(2 * channels, dtype=dtype) + 1, rand(2 * channels, dtype=dtype), 1e-5)
    got = triton_norm.layer_norm_halves(*rows, skip, *norm)
    assert_same(got, reference.layer_norm_halves(*rows, skip, *norm))


RESIZES = [(1, 3, 4, 7, 9, 8), (2, 5, 7, 10, 14, 6), (1, 1, 1, 4, 3, 40), (1, 4, 4, 4, 4, 24), (1, 9, 6, 5, 1, 3)]


@pytest.mark.parametrize("shape", RESIZES + ([] if INTERPRETED else [(3, 56, 74, 112, 148, 256)]))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_resize(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    frames, h, w, height, width, channels = shape
    x = rand(frames, h, w, channels, dtype=dtype)
    additions = {
        "bias": rand(channels, dtype=dtype),
        "columns": rand(width, channels // 2),
        "rows": rand(height, channels // 2),
        "addend": rand(frames, height, width, channels, dtype=dtype),
    }
    alone = ((), ("bias",), ("columns", "rows"), ("addend",)) if dtype == torch.float16 else ()
    if channels % 2:  # a position embedding needs halves
        del additions["columns"], additions["rows"]
    for names in (*alone, tuple(additions)):
        if not additions.keys() >= set(names):
            continue
        chosen = {name: additions[name] for name in names}
        got = triton_resize.resize(x, height, width, **chosen)
        want = reference.resize(x, height, width, **chosen)
        # 1e-5: PyTorch's CPU path orders the four products differently. On large maps the rounded fp32 position of a
        # pixel counts for more: half an ulp of the last position, times the largest difference of neighbours.
        eps = 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
        steepest = (x.amax() - x.amin()).item()
        position = max(h, w) * torch.finfo(torch.float32).eps / 2
        torch.testing.assert_close(got.float(), want.float(), rtol=eps, atol=max(1e-5, position * steepest))


def test_resize_takes_the_pixels_that_pytorch_takes() -> None:
    """A ramp shows the position each output reads; at whole positions nothing of a neighbour may come in."""
    for size_in, size_out in ((28, 56), (37, 74), (224, 392), (296, 518), (112, 224), (19, 37), (2, 1000)):
        ramp = torch.arange(float(size_in), device=DEVICE).view(1, size_in, 1, 1)
        got = triton_resize.resize(ramp, size_out, 1)
        want = F.interpolate(ramp.permute(0, 3, 1, 2), size=(size_out, 1), mode="bilinear", align_corners=True)
        torch.testing.assert_close(got.flatten(), want.flatten(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("shape", "channels"), [((1, 1, 1), 32), ((2, 5, 7), 32), ((1, 3, 100), 12)])
@pytest.mark.parametrize("inverse_log", [False, True])
def test_predict(shape: tuple[int, int, int], channels: int, inverse_log: bool) -> None:
    for dtype, outputs in ((torch.float16, 4), (torch.bfloat16, 2), (torch.float32, 4)):
        x = rand(*shape, channels, dtype=dtype)
        x[0, 0, 0] *= 1e-4  # near zero, exp(x) - 1 must not lose its digits
        x[-1, -1, -1] *= 4
        weight, bias = rand(outputs, channels, dtype=dtype), None if outputs == 2 else rand(outputs) * 1e-4
        values = torch.full((*shape, outputs - 1), float("nan"), device=DEVICE)
        confidence = torch.full(shape, float("nan"), device=DEVICE)
        triton_predict.predict_(x, weight, bias, inverse_log, values, confidence)
        want = reference.predict(x, weight, bias, inverse_log)
        largest = F.linear(x.float(), weight.float().abs()).abs().max()  # rounding of the sum moves the exponent
        torch.testing.assert_close(values, want[0], rtol=float(1e-6 * (4 + largest)), atol=2e-6)
        torch.testing.assert_close(confidence, want[1], rtol=float(1e-6 * (4 + largest)), atol=0)


@pytest.mark.parametrize(
    ("tokens", "per_frame", "heads", "dim"), [(1, 1, 2, 64), (74, 37, 3, 64), (12, 6, 16, 24), (5, 5, 1, 8)]
)
def test_qk_norm_rope(tokens: int, per_frame: int, heads: int, dim: int) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        qkv = rand(tokens, 3, heads, dim, dtype=dtype) * 3
        norms = [f(dim) for f in (rand, rand, rand, rand)]
        angles = (torch.rand(per_frame, 2, dim // 4, device=DEVICE) * 6).repeat(1, 1, 2).flatten(1)
        rope = torch.stack([angles.cos(), angles.sin()])
        want = reference.qk_norm_rope(qkv, *norms, rope, 1e-5)
        triton_rope.qk_norm_rope_(qkv, *norms, rope, 1e-5)
        assert torch.equal(qkv[:, 2], want[:, 2])
        assert_same(qkv, want)


@on_gpu
def test_more_than_2_to_the_31_elements() -> None:
    """The last rows lie behind 2^31 elements: 32-bit offsets would read and write elsewhere."""
    m, k, n = 2**21 + 3, 1024, 16
    x = torch.empty(m, k, device=DEVICE, dtype=torch.float16).normal_()
    got, scale = triton_norm.quantize_rows(x)
    want, want_scale = reference.quantize_rows(x[-5:])
    assert_same_codes((got[-5:], scale[-5:]), (want, want_scale))
    del x
    weight, weight_scale = codes(n, k), torch.rand(n, 1, device=DEVICE)
    operands = (weight, weight_scale, None, torch.float16)
    for tile in TILES[:1] + TILES[2:3] * has_descriptors():
        y = triton_gemm.int8_gemm(got, scale * 1e-3, *operands, tile=tile)
        assert_same(y[-5:], reference.int8_gemm(got[-5:], scale[-5:] * 1e-3, *operands))


@on_gpu
def test_a_resize_to_more_than_2_to_the_31_elements() -> None:
    x = rand(84, 4, 5, 128, dtype=torch.float16)
    rows, columns = rand(392, 64), rand(518, 64)
    got = triton_resize.resize(x, 392, 518, columns, rows)
    assert got.numel() > 2**31
    want = reference.resize(x[-1:], 392, 518, columns, rows)
    torch.testing.assert_close(got[-1:], want, rtol=1e-3, atol=1e-3)


@on_gpu
def test_operators_under_compile_and_in_a_graph() -> None:
    from torch.library import opcheck

    from vggt_int8.kernels import ops

    x, weight, bias = rand(1041, 1024).half(), rand(1024).half(), rand(1024).half()
    w_codes, w_scale = codes(3072, 1024), torch.rand(3072, 1, device=DEVICE) * 1e-3
    opcheck(ops.quantize_rows.op, (x,))
    opcheck(ops.layer_norm_quantize.op, (x, weight, bias, 1e-5))
    opcheck(ops.int8_gemm.op, (*reference.quantize_rows(x), w_codes, w_scale, None, torch.float16))
    opcheck(ops.int8_gemm_quantize.op, (*reference.quantize_rows(x), w_codes, w_scale, None, torch.float16, True))
    opcheck(ops.w8a16_linear.op, (x[:5], w_codes, w_scale, None))
    opcheck(ops.resize.op, (rand(2, 4, 5, 8).half(), 8, 10, rand(10, 4), rand(8, 4), None, rand(2, 8, 10, 8).half()))
    opcheck(ops.predict_.op, (rand(1, 4, 5, 32).half(), rand(2, 32), None, True, rand(1, 4, 5, 1), rand(1, 4, 5)))
    opcheck(ops.layer_norm_halves.op, (rand(2, 4, 8), rand(2, 4, 8), 1, rand(16), rand(16), 1e-5))
    opcheck(ops.dequantize.op, (codes(8, 16, 9), torch.rand(8, 1, 1, device=DEVICE), torch.float16))
    opcheck(ops.int8_gemm_into_.op, (rand(1041, 3072).half(), *reference.quantize_rows(x), w_codes, w_scale, None))

    def run(x: Tensor) -> Tensor:
        x_codes, x_scale = ops.layer_norm_quantize(x, weight, bias, 1e-5)
        return ops.int8_gemm(x_codes, x_scale, w_codes, w_scale, None, torch.float16, True)

    want = run(x)
    assert torch.equal(torch.compile(run, fullgraph=True)(x), want)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(x)
    out.fill_(float("nan"))
    graph.replay()
    assert torch.equal(out, want)
