"""Attention on a CPU: PyTorch's in floats, ours in integers of 16 bits, against attention in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.kernels.compiled import LIBRARIES, crossed, use, walled
from vggt_int8.difference import relative_error
from vggt_int8.kernels.cpu import compiled
from vggt_int8.kernels.cpu.attention import attention_cpu


def qkv_of(batch: int, heads: int, tokens: int, dim: int, spread: float = 1.5) -> list[Tensor]:
    qkv = torch.randn(batch, tokens, 3, heads, dim, generator=torch.Generator().manual_seed(tokens)) * spread
    return list(walled(qkv).permute(2, 0, 3, 1, 4))


def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q.double(), k.double(), v.double()).transpose(1, 2)


def attention_in_integers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Of our kernel, which only views of one layout reach."""
    assert k.stride() == v.stride()
    return attention_cpu(q, k, v, integers=True)


SHAPES = [
    *((1, 1, 1, 8), (2, 3, 37, 16), (1, 2, 300, 64), (3, 1, 65, 100), (1, 1, 257, 6), (1, 1, 20, 200)),
    *((1, 1, 321, 32), (1, 2, 600, 24), (2, 4, 40, 16)),  # more than one block of keys; heads that take turns
]


@pytest.mark.parametrize("shape", SHAPES)
def test_floats(shape: tuple[int, ...]) -> None:
    q, k, v = qkv_of(*shape)
    assert relative_error(attention_cpu(q, k, v), exact(q, k, v)) < 2e-6


@pytest.mark.parametrize(("library", "shape", "spread"), crossed(SHAPES, [0.1, 1.5, 5.0]))
def test_integers_are_as_good_as_fp16(
    library: str, shape: tuple[int, ...], spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(library, monkeypatch)
    called, call = [], compiled.call
    monkeypatch.setattr(compiled, "call", lambda name, *rest: called.append(name) or call(name, *rest))
    q, k, v = qkv_of(*shape, spread)
    got, want = attention_in_integers(q, k, v), exact(q, k, v)
    assert called == ["vi_attention"]
    assert got.shape == want.shape
    assert got.is_contiguous()
    assert relative_error(got, want) < 1.5 * relative_error(in_fp16(q, k, v), want)


@pytest.mark.parametrize("library", LIBRARIES)
def test_keys_of_other_tokens(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More and fewer keys than queries; queries alone and keys and values side by side, as with key frames."""
    use(library, monkeypatch)
    for batch, heads, tokens, keys, dim in (
        (1, 2, 300, 37, 64),
        (3, 1, 37, 330, 16),
        (2, 3, 50, 1, 24),
        (1, 1, 1, 70, 6),
    ):
        q = qkv_of(batch, heads, tokens, dim)[0].transpose(1, 2).contiguous().transpose(1, 2)
        k, v = walled(torch.stack([x.transpose(1, 2) for x in qkv_of(batch, heads, keys, dim)[1:]], 2)).permute(
            2, 0, 3, 1, 4
        )
        got, want = attention_in_integers(q, k, v), exact(q, k, v)
        assert got.is_contiguous()
        assert relative_error(got, want) < 1.5 * relative_error(in_fp16(q, k, v), want)


@pytest.mark.parametrize(
    ("library", "kind", "spread"),
    crossed(["outliers", "outliers together", "queries are keys", "values alike"], [0.3, 1.5, 5.0]),
)
def test_integers_are_as_good_as_fp16_on_vectors_of_other_kinds(
    library: str, spread: float, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(library, monkeypatch)
    q, k, v = qkv_of(1, 2, 330, 64, spread)
    if kind.startswith("outliers"):  # which take the range of the codes from the other channels
        q[..., 3] *= 30
        k[..., 3 if kind.endswith("together") else 5] *= 30
    if kind == "queries are keys":
        k.copy_(q)
    if kind == "values alike":
        v.mul_(0.01).add_(torch.arange(64.0))
    want = exact(q, k, v)
    assert relative_error(attention_in_integers(q, k, v), want) < 1.5 * relative_error(in_fp16(q, k, v), want)


def in_fp16(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Queries, keys, values and weights rounded to fp16, everything else exact."""
    q, k, v = (x.half().double() for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    weights = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    return (weights.half().double() @ v / weights.sum(dim=-1, keepdim=True)).transpose(1, 2)


@pytest.mark.parametrize("library", LIBRARIES)
def test_extreme_heads(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Constant values come out as they are; zeros, huge and tiny inputs, one-hot weights; the largest sums of codes."""
    use(library, monkeypatch)
    q, k, v = qkv_of(1, 2, 300, 64)
    v[:] = torch.arange(64.0) - 7
    torch.testing.assert_close(attention_in_integers(q, k, v)[0, :, 1], v[0, 1], rtol=1e-5, atol=1e-5)
    for scale in (0.0, 1e-30, 1e-3, 1e3, 1e15):
        q, k, v = qkv_of(1, 2, 300, 64)
        q.mul_(scale)
        got, want = attention_in_integers(q, k, v), exact(q, k, v)
        assert relative_error(got, want) < (0.02 if scale >= 1e3 else 1e-3)  # one-hot: a near tie may fall either way
    for scale in (1e-25, 1e30):  # queries and keys that make up for one another, and point the same way
        q, k, v = qkv_of(1, 2, 300, 64, 1.0)
        q.copy_(k).mul_(scale)
        k.div_(scale)
        assert relative_error(attention_in_integers(q, k, v), exact(q, k, v)) < 1e-3
    q, k, v = qkv_of(1, 2, 300, 64, 1.0)
    q.fill_(5e37)
    k.mul_(1e-31)
    assert relative_error(attention_in_integers(q, k, v), exact(q, k, v)) < 1e-3
    q, k, v = (torch.ones(1, 1, 520, 64) for _ in range(3))  # codes all at their largest
    assert relative_error(attention_in_integers(q, k, -v), exact(q, k, -v)) < 1e-5


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_inf_reach_what_they_would(library: str, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    use(library, monkeypatch)
    for position, (rows, columns) in enumerate(
        [(slice(70, 71), slice(0, 16)), (..., slice(0, 16)), (..., slice(3, 4))]
    ):
        qkv = qkv_of(1, 2, 90, 16)
        qkv[position][0, 1, 70, 3] = value
        got = attention_in_integers(*qkv)[0]
        touched = torch.zeros_like(got, dtype=torch.bool)
        touched[:, 1][rows, columns] = True
        assert not got[touched].isfinite().any()
        assert got[~touched].isfinite().all()


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_integers_do_not_take(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(library, monkeypatch)
    for q, k, v in (
        [x.bfloat16() for x in qkv_of(1, 2, 40, 16)],
        qkv_of(1, 1, 9, 520),
        [x.transpose(-1, -2).contiguous().transpose(-1, -2) for x in qkv_of(1, 2, 40, 16)],
    ):
        want = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        assert torch.equal(attention_cpu(q, k, v, integers=True), want)


def test_gradients_are_those_of_floats() -> None:
    q, k, v = (x.clone().requires_grad_() for x in qkv_of(1, 2, 40, 16))
    assert attention_cpu(q, k, v, integers=True).requires_grad
