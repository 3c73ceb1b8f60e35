"""What defines INT8 attention, against exact attention: close, not the same, and smoothing does its part."""

import pytest
import torch
from torch import Tensor

from vggt_int8.difference import relative_error
from vggt_int8.kernels import reference_attention
from vggt_int8.kernels.reference_attention import float_attention, int8_attention, quantize_queries_and_keys


def tensors(tokens: int = 150, dim: int = 64, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    return [torch.randn(2, 3, tokens, dim, generator=generator).to(dtype) for _ in range(3)]


def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = q.double(), k.double(), v.double()
    return (torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, dim=-1) @ v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("tokens", [1, 37, 128, 129, 1041])
@pytest.mark.parametrize("dim", [24, 64, 128])
def test_close_to_exact_attention(tokens: int, dim: int) -> None:
    q, k, v = tensors(tokens, dim)
    want = exact(q, k, v)
    assert relative_error(float_attention(q, k, v), want) < 1e-6
    got = int8_attention(q, k, v)
    assert relative_error(got, want) < 0.02
    assert (got - want).abs().max() < 0.06
    assert tokens == 1 or relative_error(got, want) > 1e-3, "codes cost something: they must be in use"
    half = relative_error(int8_attention(*(x.half() for x in (q, k, v))), want)
    assert half < 0.02


def test_layout() -> None:
    qkv = torch.randn(2, 5, 3, 4, 8, generator=torch.Generator().manual_seed(0)).half()
    for attend in (int8_attention, float_attention):
        y = attend(*qkv.permute(2, 0, 3, 1, 4).unbind(0))
        assert y.shape == (2, 5, 32)
        assert y.dtype == torch.float16
        assert y.is_contiguous()
        assert attend(*(x[:, :, :0] for x in qkv.permute(2, 0, 3, 1, 4).unbind(0))).shape == (2, 0, 32)


def test_what_is_common_to_all_keys_costs_nothing() -> None:
    q, k, v = tensors()
    common = 50 * torch.randn(2, 3, 1, 64, generator=torch.Generator().manual_seed(1))
    assert relative_error(int8_attention(q, k + common, v), exact(q, k, v)) < 0.02
    scale = quantize_queries_and_keys(q, k + common)[3]
    torch.testing.assert_close(scale, quantize_queries_and_keys(q, k)[3], rtol=1e-4, atol=0)


def test_constant_keys_give_the_mean_of_the_values() -> None:
    q, k, v = tensors()
    want = v.mean(dim=2, keepdim=True).transpose(1, 2).flatten(2).expand(-1, 150, -1)
    torch.testing.assert_close(int8_attention(q, torch.full_like(k, 3.25), v), want, rtol=1e-4, atol=1e-5)


def test_an_outlier_stays_in_its_token_or_group() -> None:
    q, k, v = tensors(300)
    q[0, 0, 7], k[0, 0, 200] = 1e3 * q[0, 0, 7], 20 * k[0, 0, 200]
    plain, found = (quantize_queries_and_keys(*x) for x in (tensors(300)[:2], (q, k)))
    changed_q, changed_k = (found[i] / plain[i] for i in (1, 3))
    assert (changed_q != 1).nonzero().tolist() == [[0, 0, 7]]
    assert (changed_k[0, 0] > 2).tolist() == [False, True, False]
    assert (changed_k[0, 0, ::2] - 1).abs().max() < 0.1  # the mean moved
    got, want = int8_attention(q, k, v), exact(q, k, v)
    assert relative_error(got[1], want[1]) < 0.02
    assert relative_error(got[0], want[0]) < 0.2


def test_in_parts_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = tensors(37)
    whole = int8_attention(q, k, v)
    for scores in (1, 6 * 37 * 5):
        monkeypatch.setattr(reference_attention, "_SCORES", scores)
        torch.testing.assert_close(int8_attention(q, k, v), whole)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_nan_and_inf_reach_the_result(value: float, which: int) -> None:
    qkv = tensors(37)
    qkv[which][0, 1, 3, 5] = value
    got = int8_attention(*qkv).unflatten(-1, (3, -1))
    assert not got[0, 3, 1].isfinite().all()
    assert got[1].isfinite().all()
    assert got[0, :, [0, 2]].isfinite().all()
