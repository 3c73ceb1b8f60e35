"""Resizing, the dense heads' outputs and rotary embeddings: Triton against the definition."""

import pytest
import torch
import torch.nn.functional as F

from tests.kernels.cuda.cases import DEVICE, INTERPRETED, assert_same, rand
from vggt_int8.kernels import reference
from vggt_int8.kernels.cuda import triton_predict, triton_resize, triton_rope

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
    ("tokens", "per_frame", "heads", "dim"),
    [
        *((1, 1, 2, 64), (5, 5, 1, 8)),
        pytest.param(12, 6, 16, 24, marks=pytest.mark.slow),
        pytest.param(74, 37, 3, 64, marks=pytest.mark.exhaustive),
    ],
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
        axial = rope[:, :, : dim // 2].repeat(1, 1, 2)
        for given in (norms, (None,) * 4):
            qkv = rand(tokens, 3, heads, dim, dtype=dtype) * 3
            want = reference.qk_norm_rope(qkv, *given, axial, 1e-5, rotate_half=True)
            triton_rope.qk_norm_rope_(qkv, *given, axial, 1e-5, rotate_half=True)
            assert torch.equal(qkv[:, 2], want[:, 2])
            assert_same(qkv, want)
        for count in (1, 2):
            x = rand(tokens, count, heads, dim, dtype=dtype) * 3
            want = reference.norm_rope(x, *norms[:2], rope, 1e-5)
            triton_rope.norm_rope_(x, *norms[:2], rope, 1e-5)
            assert torch.equal(x[:, 1:], want[:, 1:])
            assert_same(x[:, 0], want[:, 0])
