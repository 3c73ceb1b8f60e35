"""Triton attention against `reference_attention.py`.

At lengths that fill no block, with one-outlier rows, constant keys and extreme scales.
"""

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.kernels.cuda.cases import DEVICE, INTERPRETED, has_descriptors, on_gpu, quick, rand, static_scales_of
from vggt_int8.kernels import reference_attention as definition
from vggt_int8.kernels.attended import global_block, noting
from vggt_int8.kernels.cuda import triton_attention
from vggt_int8.kernels.cuda.attention_variants import RULES, SMALL, Variant, attention_variant

ROWS = 32 if INTERPRETED else 128
VARIANTS = [
    Variant(ROWS, 32, 4, 2),
    Variant(ROWS, 64, 4, 2),
    Variant(ROWS, 32, 4, 2, frozen=True),
    Variant(ROWS, 64, 4, 3, tma=True),
    Variant(ROWS, 64, 4, 3, tma=True, frozen=True, registers=True),
]
HARDEST = VARIANTS[-1]
if not INTERPRETED:
    VARIANTS += [
        Variant(128, 128, 8, 3, tma=True, frozen=True),
        Variant(128, 64, 4, 3, tma=True),
        *sorted({rule.variant for rule in RULES}, key=str),
    ]
SHAPES = [(1, 1, 2, 64), (2, 37, 2, 64), (1, 300, 1, 64), (1, 150, 1, 16), (1, 65, 1, 24), (1, 70, 1, 128)]
SHAPES += [] if INTERPRETED else [(3, 1041, 16, 64), (1, 3 * 1374, 16, 64), (2, 128, 3, 32)]  # B, N, H, D
DTYPES = [torch.float16] if INTERPRETED else [torch.float16, torch.bfloat16]  # whose bits the interpreter multiplies
GROWTHS = quick((0.99, 8.0).__contains__, [0.8, 0.99, 1.2, 8.0])  # of scores over their estimate, in units of 2^16
Shape = tuple[int, int, int, int]
one_quick_variant = pytest.mark.parametrize("variant", quick(HARDEST.__eq__, VARIANTS), ids=str)


def views(batch: int, tokens: int, heads: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v as the network has them: views of one qkv tensor."""
    return rand(batch, tokens, 3, heads, dim, dtype=dtype).permute(2, 0, 3, 1, 4).unbind(0)


def needs(variant: Variant, dim: int = 64) -> None:
    if variant.tma and not has_descriptors():
        pytest.skip("tensor descriptors need compute capability 9.0")
    if variant.grouped and (dim != 64 or not triton_attention.GLUON):
        pytest.skip("the grouped kernel is for head dim 64 and two versions of Triton")


def assert_same(variant: Variant, *qkv: Tensor) -> Tensor:
    """Weights are rounded relative to another maximum, which costs less than the dtype does at the values' size."""
    got = triton_attention.float_attention(*qkv, variant)
    want = definition.float_attention(*qkv)
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    assert got.is_contiguous()
    eps = max(torch.finfo(got.dtype).eps, 2e-6)
    difference, largest = (got.float() - want.float()).abs(), qkv[2].float().abs().amax()
    assert difference.max() <= 3 * eps * largest, difference.max()
    assert difference.norm() <= 2 * eps * want.float().norm()
    return got


@pytest.mark.parametrize("shape", quick(lambda shape: shape[1] < 100, SHAPES), ids=str)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lengths_and_head_dims(variant: Variant, dtype: torch.dtype, shape: Shape) -> None:
    needs(variant, shape[3])
    if shape[3] <= 64 or variant.block_m * variant.block_n <= 64 * 64:
        assert_same(variant, *views(*shape, dtype))


OTHER_KEYS = [(1, 130, 37, 2, 64), (2, 33, 150, 1, 64), (2, 70, 1, 2, 64), (1, 40, 65, 2, 24)]  # B, N, L, H, D
OTHER_KEYS += [] if INTERPRETED else [(1, 5000, 1041, 16, 64), (3, 1041, 333, 16, 64), (1, 300, 41640, 2, 64)]


@pytest.mark.parametrize("shape", quick(lambda shape: shape[1] == 130, OTHER_KEYS), ids=str)
@pytest.mark.parametrize("variant", quick(lambda v: v in (HARDEST, VARIANTS[2]), VARIANTS), ids=str)
def test_keys_of_other_tokens(variant: Variant, shape: tuple[int, int, int, int, int]) -> None:
    """Queries alone, and keys and values side by side, as the network has them for key frames."""
    batch, tokens, keys, heads, dim = shape
    needs(variant, dim)
    q = rand(batch, tokens, 1, heads, dim, dtype=torch.float16).permute(2, 0, 3, 1, 4)[0]
    k, v = rand(batch, keys, 2, heads, dim, dtype=torch.float16).permute(2, 0, 3, 1, 4).unbind(0)
    assert_same(variant, q, k, v)
    scale = torch.tensor([0.01], device=DEVICE)
    got = triton_attention.float_attention_quantize(q, k, v, scale, variant)
    want = definition.float_attention_quantize(q, k, v, scale)
    assert torch.equal(got[1], want[1])
    assert (got[0].int() - want[0].int()).abs().max() <= 1


@pytest.mark.parametrize("tokens", quick(lambda tokens: tokens < 100, [37, 150]))
def test_the_table_and_fp32(tokens: int) -> None:
    for dtype in (torch.float16, torch.float32):
        q, k, v = views(1, tokens, 2, 64, dtype)
        if dtype == torch.float32 or not INTERPRETED:
            assert_same(SMALL if dtype == torch.float32 else VARIANTS[0], q, k, v)
        assert torch.equal(triton_attention.float_attention(q, k, v), triton_attention.float_attention(q, k, v))


def test_what_attends_is_noted_by_its_variant() -> None:
    needs(HARDEST)
    with noting() as kernels, global_block():
        triton_attention.float_attention(*views(1, 1, 1, 64, torch.float16), HARDEST)
    assert list(kernels) == [f"Triton {HARDEST}"]


@one_quick_variant
def test_hard_rows(variant: Variant) -> None:
    needs(variant)
    q, k, v = (x.clone() for x in views(1, 150, 1, 64, torch.float16))
    q[0, 0, 3, 7], k[0, 0, 140, 7], q[0, 0, 5] = 300, -40, 0  # one outlier each, a row of zeros
    q[0, 0, 6], q[0, 0, 7] = q[0, 0, 6] * 1e-4, q[0, 0, 7] * 30
    assert_same(variant, q, k, v)
    constant = k[:, :, :1].expand_as(k).contiguous()
    mean = v.float().mean(dim=2).half()[:, 0]
    got = assert_same(variant, q, constant, v)
    torch.testing.assert_close(got[0], mean.expand(150, -1), rtol=1e-2, atol=1e-3)
    for scale in (1e-6, 100.0):
        assert_same(variant, q * scale, k, v)
    for keys in (37, 150):  # all scores far below zero: what lies behind the last key, zeros, must not be their maximum
        assert_same(variant, -4 * q.abs(), k[:, :, :keys].abs(), v[:, :, :keys])


@pytest.mark.parametrize("variant", quick(HARDEST.__eq__, [v for v in VARIANTS if v.frozen]), ids=str)
@pytest.mark.parametrize(
    "growth", quick((0.99, 8.0).__contains__, [0.8, 0.99, 1.2, 8.0])
)  # of the scores over the estimate, in units of 2^16
def test_scores_that_outgrow_the_estimate(variant: Variant, growth: float) -> None:
    """One key behind the first block, before the last and not with its query is the largest by far."""
    needs(variant)
    tokens = 8 * variant.block_m
    q, k, v = (x.clone() for x in views(1, tokens, 1, 64, torch.float16))
    q, k = q * 0.05, k * 0.05
    q[0, 0, :, 0], k[0, 0, :, 0] = 8, 0
    k[0, 0, 5 * variant.block_m + 1, 0] = growth * 16 * np.log(2)
    got = assert_same(variant, q, k, v)
    share = 2 ** (16 * growth)
    expected = share / (share + tokens) * v[0, 0, 5 * variant.block_m + 1].float()
    assert (got[0, 0].float() - expected).norm() < 0.1 * expected.norm()


def test_weights_whose_sum_overflows_while_the_values_do_not() -> None:
    """fp32: 32 weights of 2^127 for values of 1e-3, in a block of keys that the estimate has not seen."""
    q, k, v = torch.zeros(3, 1, 1, 160, 64, device=DEVICE)
    q[..., 0], v[..., :] = 26.5, 1e-3
    k[0, 0, 96:128, 0] = 26.5 * 127.3 / (26.5**2 * 64**-0.5 * math.log2(math.e))
    got = triton_attention.float_attention(q, k, v, Variant(32, 32, 4, 2, frozen=True))
    assert torch.allclose(got, torch.full_like(got, 1e-3))


@one_quick_variant
def test_nan_and_inf_stay_in_their_sequence(variant: Variant) -> None:
    needs(variant)
    for value, which in product((float("nan"), float("inf")), range(3)):
        qkv = [x.clone() for x in views(2, 70, 1, 64, torch.float16)]
        qkv[which][0, 0, 66] = value
        got = triton_attention.float_attention(*qkv, variant)
        assert not got[0, 66].isfinite().all()
        assert got[1].isfinite().all()


@one_quick_variant
@pytest.mark.parametrize("static", ["one", "take turns", "for each row"])
def test_static_codes(variant: Variant, static: str) -> None:
    """Rounded once, where the definition rounds to the dtype first: to a code more or less where that decides."""
    needs(variant)
    odd = [] if variant.grouped else [(1, 150, 1, 24)]
    for shape in [(2, 33, 2, 64), *odd] + ([] if INTERPRETED else [(10, 1041, 16, 64)]):
        qkv = views(*shape, torch.float16)
        scale = static_scales_of(shape[0] * shape[1])[static] * 0.1
        got = triton_attention.float_attention_quantize(*qkv, scale, variant)
        want = definition.float_attention_quantize(*qkv, scale)
        assert torch.equal(got[1], want[1])
        off = (got[0].int() - want[0].int()).abs()
        assert off.max() <= 1
        assert off.float().mean() < 0.05


@one_quick_variant
def test_nan_and_inf_reach_the_scale_of_static_codes(variant: Variant) -> None:
    """In one head of two: the other one's codes are as they were, and the row's scale is NaN for both."""
    needs(variant)
    scale = torch.tensor([0.01], device=DEVICE)
    good = views(2, 70, 2, 64, torch.float16)
    clean = triton_attention.float_attention_quantize(*good, scale, variant)
    cases = [(float("nan"), 0), (float("inf"), 2)]
    for value, which in cases if INTERPRETED else product((float("nan"), float("inf")), range(3)):
        qkv = [x.clone() for x in good]
        qkv[which][0, 1, 66] = value
        got = triton_attention.float_attention_quantize(*qkv, scale, variant)
        floats = triton_attention.float_attention(*qkv, variant).flatten(0, 1)
        assert torch.equal(got[1].isfinite().flatten(), floats.isfinite().all(dim=1))
        assert not got[1][66].isfinite()
        assert torch.equal(got[0][:, :64], clean[0][:, :64])


def test_which_variant_takes_what() -> None:
    """The grouped kernel is chosen for long sequences of operands that it can take, and refuses others."""
    chosen = {
        (dim, grouped): attention_variant(90, 41640, dim, torch.float16, grouped).grouped
        for dim, grouped in product((32, 64, 128), (False, True))
    }
    assert [case for case, taken in chosen.items() if taken] == [(64, True)]
    assert not attention_variant(90, 1041, 64, torch.float16).grouped
    assert not attention_variant(89, 41640, 64, torch.float16).grouped
    long = next(rule.variant for rule in RULES if rule.variant.grouped)
    with pytest.raises(ValueError, match="a head dim of 64"):
        triton_attention.float_attention(*views(1, 70, 2, 32, torch.float16), long)


def test_tensors_that_are_no_views_of_one() -> None:
    q, k, v = views(1, 40, 2, 64, torch.float16)
    want = triton_attention.float_attention(q, k, v, VARIANTS[0])
    for parts in ((q.contiguous(), k, v), (q, k, v.contiguous()), (q, k, v.transpose(2, 3).contiguous().mT)):
        assert torch.equal(triton_attention.float_attention(*parts, VARIANTS[0]), want)
    assert triton_attention.float_attention(*(x[:, :, :0] for x in (q, k, v))).shape == (1, 0, 128)


@on_gpu
def test_more_than_2_to_the_31_elements() -> None:
    """Queries, keys and values of the last head of the last sequence lie behind 2^31 elements."""
    batch, tokens, heads = 700, 1041, 16
    qkv = torch.empty(batch, tokens, 3, heads, 64, device=DEVICE, dtype=torch.float16).normal_()
    assert qkv.numel() > 2**31
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    got = triton_attention.float_attention(q, k, v)
    want = definition.float_attention(q[-1:, -1:], k[-1:, -1:], v[-1:, -1:])
    assert (got[-1, :, -64:] - want[0]).abs().max() < 5e-3


@on_gpu
@pytest.mark.parametrize("shape", [(2, 1041, 16, 64), (1, 8200, 2, 64)], ids=str)
def test_operators_under_compile_and_in_a_graph(shape: Shape) -> None:
    from torch.library import opcheck

    from vggt_int8.kernels import ops

    qkv = views(*shape, torch.float16)
    operator = ops.float_attention
    opcheck(operator.op, qkv)
    want = operator(*qkv)
    assert torch.equal(torch.compile(operator, fullgraph=True)(*qkv), want)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = operator(*qkv)
    out.fill_(float("nan"))
    graph.replay()
    assert torch.equal(out, want)
