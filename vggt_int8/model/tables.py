"""Constant tables (image statistics, positions, frequencies): built once per shape and device, then reused.

They are not buffers: a persistent buffer would add a name to the checkpoint, and a non-persistent one is left
uninitialised when a model is built on the meta device. Nothing is ever dropped from the cache, because a captured
CUDA graph keeps reading the memory of the tables it saw; so tables stay small (one-dimensional where possible).
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor


def constant_table(build: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Turn `build(*sizes)`, which makes a CPU tensor, into a cached `table(*sizes, device=...)` in fp32.

    Only the first call with given sizes and device computes and copies. torch.compile takes the result as a
    constant. The tensor is shared: never write into it.
    """
    cache: dict[tuple[object, ...], Tensor] = {}

    @torch.compiler.assume_constant_result
    @functools.wraps(build)
    def table(*sizes: float, device: torch.device) -> Tensor:
        key = (*sizes, device)
        if key in cache:
            return cache[key]
        # A tensor made in inference mode could not be used in a later training step.
        with torch.inference_mode(False), torch.no_grad():
            result = build(*sizes).to(device=device, dtype=torch.float32)
        if type(result) is Tensor:  # not a fake tensor of an export, which must not outlive it
            cache[key] = result
        return result

    return table


@constant_table
def image_statistics() -> Tensor:
    """[2, 3, 1, 1]: mean and standard deviation per RGB channel of ImageNet, for images in [0, 1]."""
    mean_std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], device="cpu")
    return mean_std[:, :, None, None]


@constant_table
def rope_table(height: int, width: int, num_special: int, head_dim: int, base: float) -> Tensor:
    """[2, P, D]: cosine and sine of the 2-D rotary embedding of one frame's P = num_special + height * width tokens.

    The first half of the D channels turns with the token's row, the second half with its column; inside a half,
    channel i is paired with channel i + D/4. Special tokens sit at (0, 0), patches start at (1, 1).
    """
    half = head_dim // 2
    frequencies = 1.0 / base ** (torch.arange(0, half, 2, device="cpu").float() / half)
    row = torch.arange(1, height + 1, device="cpu").repeat_interleave(width)
    column = torch.arange(1, width + 1, device="cpu").repeat(height)
    positions = torch.stack([row, column], dim=-1).float()  # [height * width, 2]
    positions = torch.cat([positions.new_zeros(num_special, 2), positions])
    angles = (positions[:, :, None] * frequencies).repeat(1, 1, 2)  # [P, 2, D/2]
    angles = angles.flatten(1).double()
    return torch.stack([angles.cos(), angles.sin()])


@constant_table
def uv_table(size: int, span: float, channels: int) -> Tensor:
    """[channels, size]: sine-cosine embedding of one image axis, whose `size` pixel centres fill [-span, span]."""
    edge = span * (size - 1) / size
    return _sine_cosine(torch.linspace(-edge, edge, size, dtype=torch.float64, device="cpu"), channels, 100.0).T


@constant_table
def pixel_table(size: int, channels: int) -> Tensor:
    """[size, channels]: sine-cosine embedding of the pixel coordinates 0 … size - 1."""
    return _sine_cosine(torch.arange(size, dtype=torch.float64, device="cpu"), channels, 10000.0)


@constant_table
def displacement_frequencies(channels: int) -> Tensor:
    """[channels / 2]: frequencies at which the tracker embeds a displacement in pixels."""
    return torch.arange(0, channels, 2, device="cpu") * (1000.0 / channels)


@constant_table
def search_window(radius: int) -> Tensor:
    """[(2 radius + 1)^2, 2]: (x, y) offsets of a square window; x changes slowest."""
    offsets = torch.arange(-radius, radius + 1, device="cpu").float()
    return torch.cartesian_prod(offsets, offsets)


def _sine_cosine(positions: Tensor, channels: int, base: float) -> Tensor:
    """[L] float64 -> [L, channels]: sines in the first half of the channels, cosines in the second."""
    half = channels // 2
    angles = torch.outer(positions, base ** (-torch.arange(half, dtype=torch.float64, device="cpu") / half))
    return torch.cat([angles.sin(), angles.cos()], dim=1)
