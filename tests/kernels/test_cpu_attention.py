"""The fused MLP equals its three steps; both attention kernels equal attention in float64."""

import pytest
import torch
import torch.nn.functional as F

from vggt_int8.kernels import cpu, cpu_block, reference
from vggt_int8.kernels.cpu_block import Int8Linear


def linear(n: int, k: int) -> Int8Linear:
    generator = torch.Generator().manual_seed(n)
    weight = torch.randn(n, k, generator=generator) / k**0.5
    scale = reference.absmax_scale(weight, dim=1)
    bias = torch.randn(n, generator=generator).half()
    return Int8Linear(cpu.prepare(reference.quantize(weight, scale)), scale, bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 37, 1041])
def test_mlp_equals_its_steps(dtype: torch.dtype, rows: int) -> None:
    fc1, fc2 = linear(128, 32), linear(32, 128)._replace(input_scale=torch.tensor(0.02))
    x = torch.randn(rows, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    want = cpu.w8a8_linear_cpu(F.gelu(cpu.w8a8_linear_cpu(x, *fc1)), *fc2)
    assert torch.equal(cpu_block.w8a8_mlp_cpu(x, fc1, fc2), want)


@pytest.mark.parametrize("kernel", [None, cpu_block.SDPA, cpu_block.SLICED])
@pytest.mark.parametrize(("batch", "heads", "tokens", "dim"), [(1, 1, 1, 8), (2, 3, 37, 16), (1, 2, 600, 64)])
def test_attention(kernel: str | None, batch: int, heads: int, tokens: int, dim: int) -> None:
    if kernel == cpu_block.SLICED and not torch.backends.mkldnn.is_available():
        pytest.skip("this build of PyTorch has no oneDNN")
    qkv = torch.randn(batch, tokens, 3, heads, dim, generator=torch.Generator().manual_seed(0)) * 2
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    want = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    got = cpu_block.attention_cpu(q, k, v, kernel)
    assert got.dtype == torch.float32
    assert ((got - want).norm() / want.norm()) < 2e-6


def test_attention_in_half_precision_goes_to_sdpa(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_block, "cpu_attention_kernel", lambda: cpu_block.SLICED)
    q = torch.randn(1, 2, 9, 16).bfloat16()
    assert torch.equal(cpu_block.attention_cpu(q, q, q), F.scaled_dot_product_attention(q, q, q))


def test_attention_kernel_is_named() -> None:
    assert cpu_block.cpu_attention_kernel() in (cpu_block.SDPA, cpu_block.SLICED)
