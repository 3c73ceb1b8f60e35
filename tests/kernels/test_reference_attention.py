"""What defines attention, against exact attention."""

import pytest
import torch
from torch import Tensor

from vggt_int8.difference import relative_error
from vggt_int8.kernels import reference_attention
from vggt_int8.kernels.reference_attention import float_attention


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
    assert relative_error(float_attention(q, k, v), exact(q, k, v)) < 1e-6
    halves = [x.half() for x in (q, k, v)]
    assert relative_error(float_attention(*halves), exact(*halves)) < 1e-3


def test_layout() -> None:
    qkv = torch.randn(2, 5, 3, 4, 8, generator=torch.Generator().manual_seed(0)).half()
    y = float_attention(*qkv.permute(2, 0, 3, 1, 4).unbind(0))
    assert y.shape == (2, 5, 32)
    assert y.dtype == torch.float16
    assert y.is_contiguous()
    assert float_attention(*(x[:, :, :0] for x in qkv.permute(2, 0, 3, 1, 4).unbind(0))).shape == (2, 0, 32)


def test_in_parts_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = tensors(37)
    whole = float_attention(q, k, v)
    for scores in (1, 6 * 37 * 5):
        monkeypatch.setattr(reference_attention, "_SCORES", scores)
        torch.testing.assert_close(float_attention(q, k, v), whole)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_nan_and_inf_reach_the_result(value: float, which: int) -> None:
    qkv = tensors(37)
    qkv[which][0, 1, 3, 5] = value
    got = float_attention(*qkv).unflatten(-1, (3, -1))
    meets = slice(None) if which != 1 or value != value else qkv[0][0, 1, :, 5] > 0  # a key at -inf has no weight
    reached = ~got[0, meets, 1].isfinite().all(dim=-1)
    assert reached[3] if which == 0 else reached.all()
    assert got[1].isfinite().all()
    assert got[0, :, [0, 2]].isfinite().all()
