"""What a call of the network may be given: checked without waiting for the device, and named for what it is.

Shapes, kinds and devices are known to the host. What is said here of values is for whoever waits for the device anyway
(`vggt_int8.pretrained.finite`).
"""

from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Images lie in [0, 1], but resizing overshoots at edges: the most that Lanczos' window of three pixels makes of such
# values is [-0.69, 1.69] (bicubic: [-0.45, 1.45]), so that much passes. Images of 0 to 255 go beyond unless they are
# all but black, which nobody can tell from a dark scene; normalised ones go below wherever they are dark.
LOWEST, HIGHEST = -0.7, 1.7
_HALF_PIXEL = 0.5


def checked_images(images: Any, patch: int, device: torch.device | None) -> Tensor:
    """-> [B, S, 3, H, W]. device: where the model wants them; None if something moves them there.

    Raises TypeError or ValueError that names what came instead.
    """
    check_is_tensor(images)
    shape = tuple(images.shape)
    if len(shape) not in (4, 5) or shape[-3] != 3:
        raise ValueError(
            f"images must be [S, 3, H, W] or [B, S, 3, H, W] with 3 color channels, got {shape}{_way_out(shape)}"
        )
    if 0 in shape:
        raise ValueError(f"images are empty: {shape}")
    if images.dtype not in FLOATS:
        integers = not (images.is_floating_point() or images.is_complex() or images.dtype == torch.bool)
        way_out = "divide 8-bit images by 255" if integers else "convert them with .float()"
        raise TypeError(f"images must be floats in [0, 1], got {images.dtype}; {way_out}")
    height, width = shape[-2:]
    if height % patch or width % patch:
        near = [max(patch, patch * round(side / patch)) for side in (height, width)]
        raise ValueError(
            f"images are {height} x {width} pixels (height x width), but both must be multiples of the patch "
            f"size {patch}: resize or crop them, for example to {near[0]} x {near[1]}"
        )
    if device is not None and images.device != device and "meta" not in (device.type, images.device.type):
        raise ValueError(
            f"images are on {images.device}, but the model is on {device}: call model(images.to(model.device))"
        )
    return images if len(shape) == 5 else images[None]


def _way_out(shape: tuple[int, ...]) -> str:
    """For the usual mistakes in shapes."""
    if len(shape) == 3 and shape[0] == 3:
        return ": one image is images[None]"
    if len(shape) in (3, 4, 5) and shape[-1] == 3:
        order = {3: "(2, 0, 1)[None]", 4: "(0, 3, 1, 2)", 5: "(0, 1, 4, 2, 3)"}[len(shape)]
        return f": channels come before rows, use images.permute{order}"
    return ""


def check_is_tensor(images: Any) -> None:
    """Raise TypeError unless `images` is an ordinary tensor, whatever it holds."""
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor [S, 3, H, W] in [0, 1], got {_described(images)}")
    if images.is_nested or images.is_quantized or images.layout != torch.strided:
        what, way_out = f"a tensor of layout {images.layout}", ".to_dense()"
        if images.is_nested:
            what, way_out = "a nested tensor", "torch.stack, which wants images of one size"
        elif images.is_quantized:
            what, way_out = f"a quantized tensor ({images.dtype})", ".dequantize()"
        raise TypeError(f"images must be an ordinary tensor [S, 3, H, W] in [0, 1], got {what}: use {way_out}")


def _described(value: Any) -> str:
    """What came in place of a tensor, and how to make one of it."""
    kind = (
        type(value).__name__
        if type(value).__module__ == "builtins"
        else f"{type(value).__module__}.{type(value).__name__}"
    )
    if value is None:
        return "None: load_images(paths) makes one of files"
    if isinstance(value, str | bytes) or hasattr(value, "__fspath__"):
        return f"{kind} {value!r:.80}: load_images(paths) makes one of files"
    if type(value).__module__.startswith("PIL."):
        return f"{kind}: save it, and let load_images(paths) read and resize it"
    if isinstance(value, list | tuple) and value:
        if isinstance(value[0], Tensor):
            return f"a {kind} of {len(value)} tensors: use torch.stack"
        return f"a {kind} of {len(value)}, the first being {_described(value[0])}"
    if hasattr(value, "__array_interface__"):
        return f"{kind} {list(value.shape)} of {value.dtype}: use torch.from_numpy"
    return kind


def checked_query_points(query_points: Any, images: Tensor, levels: int) -> Tensor:
    """-> [B, N, 2] fp32, for checked images; levels: of halved maps, in which the tracker looks for points.

    Raises TypeError or ValueError that names what came instead.
    """
    if not isinstance(query_points, Tensor):
        raise TypeError(f"query_points must be a tensor [N, 2] or [B, N, 2], got {type(query_points).__name__}")
    if query_points.dtype == torch.bool or query_points.is_complex() or query_points.layout != torch.strided:
        what = query_points.dtype if query_points.layout == torch.strided else query_points.layout
        raise TypeError(f"query_points must be pixels (x, y) as floats or integers, got {what}")
    batch, (height, width) = images.shape[0], images.shape[-2:]
    shape = tuple(query_points.shape)
    points = query_points[None] if len(shape) == 2 else query_points
    if points.dim() != 3 or points.shape[0] != batch or points.shape[2] != 2 or points.shape[1] == 0:
        raise ValueError(f"query_points must be [N, 2] or [B, N, 2] with B = {batch} and N > 0, got {shape}")
    if min(height, width) < 2**levels:
        raise ValueError(
            f"images of {height} x {width} pixels are too small to track points: "
            f"{levels} correlation levels need at least {2**levels} pixels a side"
        )
    if points.device != images.device:
        raise ValueError(
            f"query_points are on {points.device}, but the images are on {images.device}: "
            "use query_points.to(images.device)"
        )
    return points.float()


def points_inside(points: Tensor, height: int, width: int) -> Tensor:
    """Whether all points (x, y) [..., 2] are inside of an image, as a bool of their device.

    Half a pixel around is inside, wherever the caller has the middle of the first pixel: at 0 or at 0.5.
    """
    x, y = points[..., 0], points[..., 1]
    return ((x >= -_HALF_PIXEL) & (x <= width) & (y >= -_HALF_PIXEL) & (y <= height)).all()


def describe_outside(points: Tensor, height: int, width: int) -> str:
    """The sentence for points [..., N, 2] that are not all inside. Waits for the device."""
    flat = points.reshape(-1, 2).tolist()
    outside = [
        (number % points.shape[-2], x, y)
        for number, (x, y) in enumerate(flat)
        if not (-_HALF_PIXEL <= x <= width and -_HALF_PIXEL <= y <= height)
    ]
    number, x, y = outside[0]
    kind = "not a number" if x != x or y != y else f"outside of the images, {width} x {height} pixels (width x height)"
    return (
        f"{len(outside)} of {len(flat)} query_points are no pixels of the first frame: point {number}, "
        f"(x, y) = ({x:g}, {y:g}), is {kind}"
    )


def describe_range(low: float, high: float) -> str | None:
    """What is wrong with images whose values reach from `low` to `high`; None if nothing can be said to be."""
    if not (low < LOWEST or high > HIGHEST):
        return None
    if low >= 0:
        guess = "divide them by 255" if high <= 255 else "scale them to it"
    else:
        guess = "do not normalise them: the model does, with ImageNet's mean and deviation"
    return f"images must lie in [0, 1], but hold values from {low:.4g} to {high:.4g}: {guess}"
