"""Constant tables (image statistics, positions, frequencies): built once per shape and device, then reused.

They are not buffers: a persistent buffer would add a name to the checkpoint, and a non-persistent one stays
uninitialized when a model is built on the meta device. Entries are never evicted, because a captured CUDA graph keeps
reading the memory of its tables; tables are therefore small (one-dimensional where possible).
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


def constant_table(build: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Cache the result of `build(*sizes, device=...)`, in fp32. The tensor is shared: never write to it.

    Builders use only device operations, no copy from the host, so torch.compile can take them into its graph.
    """
    cache: dict[tuple[object, ...], Tensor] = {}

    @functools.wraps(build)
    def table(*sizes: float, device: torch.device) -> Tensor:
        if torch.compiler.is_compiling():
            return build(*sizes, device=device).float()
        key = (*sizes, device)
        if key in cache:
            return cache[key]
        # A tensor made in inference mode could not be used in a later training step.
        with torch.inference_mode(False), torch.no_grad():
            result = build(*sizes, device=device).float()
        if type(result) is Tensor:  # a fake tensor must not outlive the mode that made it
            cache[key] = result
        return result

    return table


@constant_table
def image_statistics(*, device: torch.device) -> Tensor:
    """[2, 3, 1, 1]: mean and standard deviation per RGB channel of ImageNet, for images in [0, 1]."""
    values = [torch.full((), value, dtype=torch.float32, device=device) for value in (*IMAGE_MEAN, *IMAGE_STD)]
    return torch.stack(values).view(2, 3, 1, 1)


@constant_table
def rope_table(
    height: int, width: int, num_special: int, head_dim: int, base: float, *, device: torch.device
) -> Tensor:
    """[2, P, D]: cosine and sine of the 2-D rotary embedding of one frame's P = num_special + height * width tokens.

    The first half of the D channels turns with the token's row, the second half with its column; inside a half,
    channel i is paired with channel i + D/4. Special tokens sit at (0, 0), patches start at (1, 1).
    """
    half = head_dim // 2
    frequencies = 1.0 / base ** (torch.arange(0, half, 2, device=device).float() / half)
    row = torch.arange(1, height + 1, device=device).repeat_interleave(width)
    column = torch.arange(1, width + 1, device=device).repeat(height)
    positions = torch.stack([row, column], dim=-1).float()  # [height * width, 2]
    positions = torch.cat([positions.new_zeros(num_special, 2), positions])
    angles = (positions[:, :, None] * frequencies).repeat(1, 1, 2)  # [P, 2, D/2]
    angles = angles.flatten(1).double()
    return torch.stack([angles.cos(), angles.sin()])


@constant_table
def uv_table(size: int, span: float, channels: int, *, device: torch.device) -> Tensor:
    """[channels, size]: sine-cosine embedding of one image axis, whose `size` pixel centers fill [-span, span]."""
    edge = span * (size - 1) / size
    return _sine_cosine(torch.linspace(-edge, edge, size, dtype=torch.float64, device=device), channels, 100.0).T


@constant_table
def pixel_table(size: int, channels: int, *, device: torch.device) -> Tensor:
    """[size, channels]: sine-cosine embedding of the pixel coordinates 0 … size - 1."""
    return _sine_cosine(torch.arange(size, dtype=torch.float64, device=device), channels, 10000.0)


@constant_table
def displacement_frequencies(channels: int, *, device: torch.device) -> Tensor:
    """[channels / 2]: frequencies at which the tracker embeds a displacement in pixels."""
    return torch.arange(0, channels, 2, device=device).float() * (1000.0 / channels)


@constant_table
def search_window(radius: int, *, device: torch.device) -> Tensor:
    """[(2 radius + 1)^2, 2]: (x, y) offsets of a square window; x changes slowest."""
    offsets = torch.arange(-radius, radius + 1, device=device).float()
    return torch.cartesian_prod(offsets, offsets)


def _sine_cosine(positions: Tensor, channels: int, base: float) -> Tensor:
    """[L] float64 -> [L, channels]: sines in the first half of the channels, cosines in the second."""
    half = channels // 2
    angles = torch.outer(positions, base ** (-torch.arange(half, dtype=torch.float64, device=positions.device) / half))
    return torch.cat([angles.sin(), angles.cos()], dim=1)
