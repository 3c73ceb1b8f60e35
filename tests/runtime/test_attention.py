"""The table of attention kernels, and the layout that attention hands on."""

import pytest
import torch
import torch.nn.functional as F

from vggt_int8.runtime.attention import CUDNN, EFFICIENT, FLASH, LARGE, MATH, RULES, TRITON, attention, backends


@pytest.mark.parametrize(
    ("arch", "tokens", "first"),
    [
        *((90, 1041, TRITON), (90, 104100, TRITON), (100, 1041, CUDNN)),
        *((90, 10, FLASH), (80, 1041, FLASH), (89, 10410, FLASH), (75, 100, FLASH)),
    ],
)
def test_the_first_choice(arch: int, tokens: int, first: object) -> None:
    assert backends(arch, tokens, 3 * tokens * 1024)[0] == first


def test_every_case_has_a_rule_and_a_kernel_for_fp32() -> None:
    for arch in (75, 80, 86, 89, 90, 100, 120):
        for tokens in (1, 2, 255, 256, 4095, 4096, 10**6):
            order = backends(arch, tokens, 1)
            assert EFFICIENT in order
            assert (MATH in order) == (tokens < 4096), "a matrix of scores is only for short sequences"
            assert order[-1] != TRITON, "which does not run everything"
    assert len(RULES) == len(set(RULES))


def test_beyond_31_bits_only_kernels_that_count_in_64() -> None:
    assert CUDNN in backends(90, 10**6, LARGE)
    assert CUDNN not in backends(90, 10**6, LARGE + 1)


def test_tokens_come_out_side_by_side() -> None:
    qkv = torch.randn(2, 7, 3, 4, 8)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    got = attention(q, k, v)
    assert got.shape == (2, 7, 32)
    assert got.is_contiguous()
    torch.testing.assert_close(got, F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
