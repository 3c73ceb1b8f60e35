"""Checks that inputs are in range and results finite: one check per call, and a search for the layer only after a
failure.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vggt_int8.listing import first_few
from vggt_int8.model.call import HIGHEST, LOWEST, OF_OWN_FRAMES, describe_range
from vggt_int8.model.vggt import VGGTOutput

# images are the input; a field of view of zero only makes the intrinsic infinite, which is a warning.
_UNCHECKED = ("images", "intrinsic", "pose_enc_list")
_HALF_PIXEL = 0.5


class NonFiniteOutput(FloatingPointError):
    """An output holds NaN or inf. The message names the outputs, the frames and the first layer that produced them."""


def is_capturing(tensor: Tensor) -> bool:
    """Whether the forward is being captured in a CUDA graph, where values cannot be read."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def check_values(images: Tensor, points: Tensor | None) -> None:
    """Raise ValueError if images are clearly not in [0, 1], or query points [B, N, 2] not inside them;
    `NonFiniteOutput` for NaN and inf in images.
    """
    _check_range(*(bound.item() for bound in images.detach().aminmax()))
    if points is not None and not bool(_points_inside(points, *images.shape[-2:])):
        raise ValueError(_describe_outside(points, *images.shape[-2:]))


def _check_range(low: float, high: float) -> None:
    if not (math.isfinite(low) and math.isfinite(high)):
        raise NonFiniteOutput("the input images hold NaN or inf")
    if low < LOWEST or high > HIGHEST:
        raise ValueError(describe_range(low, high))


def _points_inside(points: Tensor, height: int, width: int) -> Tensor:
    """Whether all points (x, y) [..., 2] are inside an image, as a bool tensor on their device.

    Half a pixel of tolerance allows for both conventions: the center of the first pixel at 0 or at 0.5.
    """
    x, y = points[..., 0], points[..., 1]
    return ((x >= -_HALF_PIXEL) & (x <= width) & (y >= -_HALF_PIXEL) & (y <= height)).all()


def _describe_outside(points: Tensor, height: int, width: int) -> str:
    """The error message for points [..., N, 2] that are not all inside. Synchronizes with the device."""
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


def check_finite(
    model: nn.Module,
    output: VGGTOutput,
    query_points: Tensor | None,
    rerun: Callable[[], Any] | None,
    first_frame: int = 0,
) -> None:
    """Raise `NonFiniteOutput` if an output is not finite; warn about a field of view of zero.

    On a GPU, also raise ValueError for images not in [0, 1] and query points [..., N, 2] outside them, which on a CPU
    are checked beforehand. Takes one transfer from the device if all is well.

    rerun: repeats the forward pass to find the layer at fault; None if that is not possible.
    first_frame: index of the first of these images in the scene.
    """
    images, pose = output.images, output.pose_enc
    names = [name for name, value in output.items() if name not in _UNCHECKED and value is not None]
    asked = {name: output[name].isfinite().all() for name in names}
    if pose is not None:
        asked["no view"] = (pose[..., 7:] == 0).any()
    if images is not None and images.device.type != "cpu":
        asked["low"], asked["high"] = images.detach().aminmax()
        if query_points is not None:
            asked["inside"] = _points_inside(query_points, *images.shape[-2:])
    device = next(iter(asked.values())).device
    answers = torch.stack([answer.to(device, torch.float32) for answer in asked.values()]).tolist()
    found = dict(zip(asked, answers, strict=True))
    if "low" in found:
        _check_range(found["low"], found["high"])
    if images is not None and query_points is not None and not found.get("inside", True):
        raise ValueError(_describe_outside(query_points, *images.shape[-2:]))
    if bad := [name for name in names if not found[name]]:
        raise NonFiniteOutput(_describe(model, output, bad, rerun, first_frame))
    if pose is not None and found["no view"]:
        frames = (pose[..., 7:] == 0).any(dim=-1).nonzero()[:, 1].unique().tolist()
        warnings.warn(
            f"frames {frames} have a field of view of 0: their intrinsic is infinite, all else is valid",
            RuntimeWarning,
            stacklevel=5,
        )


def _describe(
    model: nn.Module, output: VGGTOutput, bad: list[str], rerun: Callable[[], Any] | None, first_frame: int
) -> str:
    starts = {name: first_frame if name in OF_OWN_FRAMES else 0 for name in bad}
    frames = sorted({start + frame for name, start in starts.items() for frame in _bad_frames(output[name])})
    layer = "a layer that one GPU alone would find" if rerun is None else first_non_finite_layer(model, rerun)
    where = f" (frames [{first_few(frames, 8)}])" if frames else ""
    return (
        f"NaN or inf in {', '.join(bad)}{where}; first seen after {layer}. With fp16, "
        "dtype=torch.bfloat16 or torch.float32 reaches further"
    )


def _bad_frames(tensor: Tensor) -> list[int]:
    """Indices of non-finite frames in [B, S, ...]; none for outputs of a whole scene, [B, C]."""
    if tensor.ndim < 3:
        return []
    per_frame = tensor.isfinite().flatten(2).all(dim=-1)
    frames: list[int] = (~per_frame).nonzero()[:, 1].unique().tolist()
    return frames


class _Found(Exception):
    """Stops the forward pass at the first layer with a non-finite result."""


@torch.no_grad()
def first_non_finite_layer(model: nn.Module, run: Callable[[], Any]) -> str:
    """Name of the first innermost module whose result is not finite when `run` calls the model."""
    names = {module: name for name, module in model.named_modules()}

    def look(module: nn.Module, _: Any, result: Any) -> None:
        if isinstance(result, Tensor) and not bool(result.isfinite().all()):
            raise _Found(names[module])

    hooks = [module.register_forward_hook(look) for module in names]
    try:
        run()
    except _Found as found:
        return f"{found} ({type(model.get_submodule(str(found))).__name__})"
    finally:
        for hook in hooks:
            hook.remove()
    return "the last layer"
