"""Attention and convolutions on a GPU, each by itself."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import sdpa_kernel

from vggt_int8.difference import relative_error
from vggt_int8.runtime.attention import CUDNN, FLASH, attention
from vggt_int8.runtime.convolution import call_conv


@pytest.mark.parametrize("order", [CUDNN, FLASH])
def test_attention_copies_neither_its_input_nor_its_output(order: object) -> None:
    qkv = torch.randn(2, 1041, 3, 16, 64, device="cuda", dtype=torch.float16)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with sdpa_kernel(order):
        y = F.scaled_dot_product_attention(q, k, v)
    used = torch.cuda.max_memory_allocated() - before
    assert y.transpose(1, 2).is_contiguous()
    assert used < 2 * y.numel() * y.element_size(), "copies of q, k and v would be three times the output"


def test_attention_beyond_31_bits() -> None:
    """qkv of 2.2e9 elements; some rows against fp32."""
    tokens, heads, dim = 1_440_000, 8, 64
    qkv = torch.empty(1, tokens, 3, heads, dim, device="cuda", dtype=torch.float16).normal_()
    assert qkv.numel() > 2**31
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    y = attention(q, k, v).unflatten(2, (heads, dim))
    rows = torch.tensor([0, 1, tokens // 2, tokens - 1], device="cuda")
    for head in (0, heads - 1):
        scores = (q[0, head, rows].float() @ k[0, head].float().T) * dim**-0.5
        want = scores.softmax(-1) @ v[0, head].float()
        assert relative_error(y[0, rows, head], want) < 0.02


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_convolutions_with_what_is_fused_to_them(dtype: torch.dtype) -> None:
    for in_channels, out_channels, size in ((256, 256, (112, 148)), (128, 32, (56, 74)), (512, 256, (19, 23))):
        layer = nn.Conv2d(in_channels, out_channels, 3, padding=1).cuda()
        conv = call_conv(layer, dtype)
        x = torch.randn(2, in_channels, *size, device="cuda").to(dtype).to(memory_format=torch.channels_last)
        with torch.no_grad():
            plain = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)
            z = torch.randn_like(plain).to(dtype).contiguous(memory_format=torch.channels_last)
            for got, want in ((conv.relu(x), plain.relu()), (conv.add_relu(x, z), (plain + z.double()).relu())):
                assert got.is_contiguous(memory_format=torch.channels_last)
                assert relative_error(got, want) < (3e-3 if dtype != torch.bfloat16 else 1e-2)
