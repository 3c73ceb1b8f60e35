"""Results that leave the model are finite, or the call raises: one check per call, and a search only when it fails."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vggt_int8.model.vggt import VGGTOutput

# images are the input; a field of view of zero makes the intrinsic alone infinite, which is a warning, not an error.
_UNCHECKED = ("images", "intrinsic", "pose_enc_list")


class NonFiniteOutput(FloatingPointError):
    """An output holds NaN or inf. The message names the outputs, the frames and the first layer that made them."""


def is_capturing(tensor: Tensor) -> bool:
    """Whether the forward is being traced or captured, where values cannot be looked at."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def check_finite(model: nn.Module, output: VGGTOutput, rerun: Callable[[], Any]) -> None:
    """Raise `NonFiniteOutput` if an output is not finite; warn about a field of view of zero.

    One transfer from the device if all is well. `rerun` repeats the forward, to find the layer at fault.
    """
    names = [name for name, value in output.items() if name not in _UNCHECKED and value is not None]
    tensors = [output[name] for name in names]
    flags = [tensor.isfinite().all() for tensor in tensors]
    if output.pose_enc is not None:
        flags.append((output.pose_enc[..., 7:] == 0).any())
    values = torch.stack([flag.to(flags[0].device) for flag in flags]).tolist()
    if not all(values[: len(names)]):
        bad = [name for name, finite in zip(names, values, strict=False) if not finite]
        raise NonFiniteOutput(_describe(model, output, bad, rerun))
    if output.pose_enc is not None and values[-1]:
        frames = (output.pose_enc[..., 7:] == 0).any(dim=-1).nonzero()[:, 1].unique().tolist()
        warnings.warn(
            f"frames {frames} have a field of view of 0: their intrinsic is infinite, all else is valid",
            RuntimeWarning,
            stacklevel=4,
        )


def _describe(model: nn.Module, output: VGGTOutput, bad: list[str], rerun: Callable[[], Any]) -> str:
    if output.images is not None and not bool(output.images.isfinite().all()):
        return "the input images hold NaN or inf"
    frames = sorted({f for name in bad for f in _bad_frames(output[name])})
    layer = first_non_finite_layer(model, rerun)
    return (
        f"NaN or inf in {', '.join(bad)} (frames {frames[:8]}); first seen after {layer}. With fp16, "
        "dtype=torch.bfloat16 or torch.float32 reaches further"
    )


def _bad_frames(tensor: Tensor) -> list[int]:
    per_frame = tensor.isfinite().flatten(2).all(dim=-1) if tensor.ndim > 2 else tensor.isfinite()
    frames: list[int] = (~per_frame).nonzero()[:, 1].unique().tolist()
    return frames


class _Found(Exception):
    """Stops the forward at the first layer with a bad result."""


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
