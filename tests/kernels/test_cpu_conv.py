"""The integer convolution: exact where its input is integers, within half a step elsewhere."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.kernels.compiled import LIBRARIES, crossed, use, walled
from vggt_int8.difference import relative_error
from vggt_int8.kernels.cpu.conv import int8_conv2d

# frames, input and output channels, height, width, taps, stride, padding
SHAPES = [
    *((1, 8, 5, 1, 1, 3, 1, 1), (2, 37, 9, 7, 5, 3, 1, 1), (3, 16, 64, 14, 37, 3, 1, 1)),
    *((1, 64, 64, 37, 37, 3, 2, 1), (1, 5, 3, 9, 8, 1, 1, 0), (1, 256, 33, 6, 11, 3, 1, 1)),
    *((2, 3, 80, 10, 9, 2, 2, 0), (1, 1024, 7, 5, 4, 3, 1, 1)),
]


@pytest.fixture(autouse=True, params=LIBRARIES)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    use(request.param, monkeypatch)
    return str(request.param)


def operands(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[int, int], tuple[int, int]]:
    frames, channels, outputs, height, width, taps, stride, padding = shape
    generator = torch.Generator().manual_seed(channels)
    weight = torch.randint(-127, 128, (outputs, channels, taps, taps), generator=generator, dtype=torch.int8)
    weight[0] = 127
    x = torch.randn(frames, channels, height, width, generator=generator)
    scale = torch.rand(outputs, 1, 1, 1, generator=generator) * 0.01
    return x, weight, scale, torch.randn(outputs, generator=generator), (stride, stride), (padding, padding)


def exact(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, *geometry: tuple[int, int]) -> Tensor:
    return F.conv2d(x.double(), weight * scale.double(), None if bias is None else bias.double(), *geometry)


def largest_code(weight: Tensor) -> int:
    """Of the activations, so that sums stay in int32: those of all taps, or of single taps if that is too coarse."""
    whole, tap = (int(weight.abs().int().sum(dim=dims).max()) for dims in ((1, 2, 3), 1))
    limit = (2**31 - 1) // whole
    return min(32767, limit if limit >= 16384 else (2**31 - 1) // tap)


@pytest.mark.parametrize("shape", SHAPES)
def test_integers_are_multiplied_exactly(shape: tuple[int, ...]) -> None:
    _, weight, scale, _, *geometry = operands(shape)
    frames, channels, _, height, width = shape[:5]
    most = largest_code(weight)
    x = torch.randint(-most, most + 1, (frames, channels, height, width)).float()
    x[:, 0, 0, 0], x[:, -1, -1, -1] = most, -most  # the scale of each frame is 1, give or take its rounding
    ones = torch.ones_like(scale)
    got, want = int8_conv2d(x, weight, ones, None, *geometry), exact(x, weight, ones, None, *geometry)
    # Sums are exact in int32; their fp32 values, and those of single taps, are rounded.
    step = 2.0**-23 * exact(x.abs(), weight.abs(), ones, None, *geometry)
    assert ((got - want).abs() <= 3 * step).all()
    x = torch.full_like(x, most)  # the largest sums there are
    got, want = int8_conv2d(x, weight, ones, None, *geometry), exact(x, weight, ones, None, *geometry)
    torch.testing.assert_close(got.double(), want, rtol=5e-7, atol=1e-6 * float(want.abs().max()))


@pytest.mark.parametrize(("library", "shape", "magnitude"), crossed(SHAPES, [1e-30, 1.0, 1e20]), indirect=["library"])
def test_floats_within_half_a_step(shape: tuple[int, ...], magnitude: float) -> None:
    x, weight, scale, bias, *geometry = operands(shape)
    x, bias = walled(x * magnitude), bias * magnitude
    half_step = x.abs().max().double() / largest_code(weight) / 2
    for b in (bias, None):
        got, want = int8_conv2d(x, weight, scale, b, *geometry), exact(x, weight, scale, b, *geometry)
        assert got.is_contiguous(memory_format=torch.channels_last)
        allowed = half_step * exact(torch.ones_like(x), weight.abs(), scale, None, *geometry)
        assert ((got - want).abs() <= 1.01 * allowed + 1e-6 * want.abs().max()).all()
        assert relative_error(got, want) < 1e-4


@pytest.mark.parametrize("shape", SHAPES)
def test_sum_and_relu(shape: tuple[int, ...]) -> None:
    x, *operand = operands(shape)
    y = int8_conv2d(x, *operand)
    addend = torch.randn(y.shape).contiguous(memory_format=torch.channels_last)
    want = y + addend
    assert torch.equal(int8_conv2d(x, *operand, relu=True), y.relu())
    for relu in (False, True):
        got = int8_conv2d(x, *operand, addend=addend, relu=relu)
        torch.testing.assert_close(got, want.relu() if relu else want, rtol=1e-6, atol=1e-6 * float(want.abs().max()))


@pytest.mark.slow
def test_frames_have_scales_of_their_own_and_large_ones_take_turns(library: str) -> None:
    if library.startswith("emulated"):
        pytest.skip("too large for an emulation")
    weight = torch.randint(-127, 128, (2, 1, 3, 3), dtype=torch.int8)
    x = torch.randn(3, 1, 1400, 2100) * torch.tensor([1.0, 1e-3, 1e3]).view(3, 1, 1, 1)  # 5.9 million padded codes each
    got = int8_conv2d(x, weight, torch.ones(2, 1, 1, 1), None, (1, 1), (1, 1))
    want = F.conv2d(x, weight.float(), None, 1, 1)
    for frame in range(3):
        assert relative_error(got[frame], want[frame]) < 1e-4


def test_zeros_give_the_bias_and_nan_stays_where_it_is() -> None:
    x, weight, scale, bias, *geometry = operands((2, 8, 5, 9, 9, 3, 1, 1))
    assert torch.equal(int8_conv2d(x * 0, weight, scale, bias, *geometry)[0, :, 4, 4], bias)
    for value in (float("nan"), float("inf")):
        x[1, 3, 4, 4] = value
        ones = torch.ones(2, 5, 9, 9).contiguous(memory_format=torch.channels_last)
        for extra in ({}, {"relu": True}, {"addend": ones.clone()}, {"addend": ones.clone(), "relu": True}):
            got = int8_conv2d(x, weight, scale, bias, *geometry, **extra)
            assert not got[1, 0, 3:6, 3:6].isfinite().any()
            assert got[0].isfinite().all()


@pytest.mark.parametrize("position", ["bias", "addend"])
def test_relu_lets_nan_pass(position: str) -> None:
    x, weight, scale, bias, *geometry = operands((2, 8, 5, 9, 9, 3, 1, 1))
    addend = torch.ones(2, 5, 9, 9).contiguous(memory_format=torch.channels_last)
    (bias if position == "bias" else addend[0])[2] = float("nan")
    got = int8_conv2d(x, weight, scale, bias, *geometry, addend=addend, relu=True)
    assert got[0, 2].isnan().all()
    assert got[:, [0, 1, 3, 4]].isfinite().all()


def test_a_changed_weight_is_noticed() -> None:
    x, weight, *rest = operands((1, 8, 5, 9, 9, 3, 1, 1))
    before = int8_conv2d(x, weight, *rest)
    weight.neg_()
    assert not torch.equal(int8_conv2d(x, weight, *rest), before)
    assert torch.equal(int8_conv2d(x, weight, *rest), int8_conv2d(x, weight.clone(), *rest))


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, torch.ones(2, 8, 0, 5), r"does not fit x \[2, 8, 0, 5\]"),
        (0, torch.ones(2, 7, 9, 9), r"weight \[5, 8, 3, 3\] with padding \(1, 1\) does not fit x \[2, 7, 9, 9\]"),
        (0, torch.ones(2, 8, 9, 9).half(), r"x must be fp32 .* not torch.float16 \[2, 8, 9, 9\]"),
        (1, torch.ones(5, 8, 12, 3, dtype=torch.int8), r"weight \[5, 8, 12, 3\] .* does not fit"),
        (1, torch.ones(5, 8, 3, 3, dtype=torch.int8, device="meta"), r"on a CPU, not \['cpu', 'meta'"),
        (2, torch.ones(1), r"weight_scale and bias must have 5 values, not \[1\] and \[5\]"),
        (3, torch.ones(4), r"weight_scale and bias must have 5 values, not .* and \[4\]"),
        (6, torch.ones(2, 5, 1, 1), r"addend must be fp32 \[2, 5, 9, 9\], not torch.float32 \[2, 5, 1, 1\]"),
    ],
)
def test_wrong_operands(position: int, value: Tensor, message: str) -> None:
    arguments: list[object] = [*operands((2, 8, 5, 9, 9, 3, 1, 1)), None]
    arguments[position] = value
    with pytest.raises(ValueError, match=message):
        int8_conv2d(*arguments)
