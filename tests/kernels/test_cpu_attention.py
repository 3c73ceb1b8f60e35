"""Both attention kernels equal attention in float64."""

import pytest
import torch
import torch.nn.functional as F

from vggt_int8.kernels import cpu_attention


@pytest.mark.parametrize("kernel", [None, cpu_attention.SDPA, cpu_attention.SLICED])
@pytest.mark.parametrize(("batch", "heads", "tokens", "dim"), [(1, 1, 1, 8), (2, 3, 37, 16), (1, 2, 600, 64)])
def test_attention(kernel: str | None, batch: int, heads: int, tokens: int, dim: int) -> None:
    if kernel == cpu_attention.SLICED and not torch.backends.mkldnn.is_available():
        pytest.skip("this build of PyTorch has no oneDNN")
    qkv = torch.randn(batch, tokens, 3, heads, dim, generator=torch.Generator().manual_seed(0)) * 2
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    want = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    got = cpu_attention.attention_cpu(q, k, v, kernel)
    assert got.dtype == torch.float32
    assert ((got - want).norm() / want.norm()) < 2e-6


def test_half_precision_and_short_sequences_go_to_sdpa(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_attention, "cpu_attention_kernel", lambda: cpu_attention.SLICED)
    q = torch.randn(1, 2, 600, 16)
    want = F.scaled_dot_product_attention(q.double(), q.double(), q.double())
    assert ((cpu_attention.attention_cpu(q, q, q) - want).norm() / want.norm()) < 2e-6
    for other in (q.bfloat16(), q[:, :, :9]):
        assert torch.equal(
            cpu_attention.attention_cpu(other, other, other), F.scaled_dot_product_attention(other, other, other)
        )


def test_attention_kernel_is_named() -> None:
    assert cpu_attention.cpu_attention_kernel() in (cpu_attention.SDPA, cpu_attention.SLICED)
