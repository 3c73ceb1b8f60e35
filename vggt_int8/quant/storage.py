"""How a quantized layer holds its tensors: int8 codes, fp32 scales, fp16 bias, whatever the model's dtype is.

The codes are stored under the name of the weight, but with an extra leading axis of size 1. A network of floats
therefore rejects them when a checkpoint or state dict is loaded, instead of taking codes for weights.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vggt_int8.kernels.cpu.ops import rotate_rows
from vggt_int8.kernels.cpu.threads import PIECE, pieces
from vggt_int8.kernels.reference import CODE_MAX, quantize, rotate, scale_from_absmax
from vggt_int8.quant.layer import Int8Layer
from vggt_int8.quant.soundness import SMALLEST_ABSMAX, code_range, codes_problem, largest_codes, scale_problem

# Elements of a weight that are encoded at a time, which bounds the memory of quantizing a large layer. On a CPU it is
# the amount that one thread processes, since several weights are encoded concurrently.
_ENCODE_ELEMENTS = 1 << 18
_ONES_ARE_LAST = 1.5 * 2**23  # of an fp32 number of this size
NO_FLOATS = (
    "the input of an INT8 layer must be floats, got {dtype}: if a module casts its input to the dtype of this layer's "
    "weight, keep the layer in the recipe ({layer})"
)


class Int8Storage(nn.Module, Int8Layer):
    """Base of the INT8 layers that store codes: `weight` int8, `weight_scale` fp32, `bias` fp16 or None.

    None of them is trainable. `weight` is [1, N, K] or [1, O, I, kh, kw], as stored; computations read `codes`.
    """

    code_axes: int
    channel_axis = 0  # axis of the float layer's weight along which scales differ
    rotation = 0  # group size in which the rows of the float layer's weight are rotated before encoding; 0 for none
    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def _allocate(
        self,
        codes_shape: tuple[int, ...],
        scale_shape: tuple[int, ...],
        bias: bool,
        device: torch.device | str | None,
    ) -> None:
        self.weight = self._parameter(torch.empty((1, *codes_shape), dtype=torch.int8, device=device))
        self.weight_scale = self._parameter(torch.empty(scale_shape, dtype=torch.float32, device=device))
        bias_shape = (self.weight_scale.numel(),)
        self.bias = self._parameter(torch.empty(bias_shape, dtype=torch.float16, device=device)) if bias else None

    def _store(self, codes: Tensor, scale: Tensor) -> None:
        """Take over the results of `encode`."""
        self.weight, self.weight_scale = self._parameter(codes.unsqueeze(0)), self._parameter(scale)

    def replace_codes(self, codes: Tensor) -> None:
        """Replace the codes by other roundings of the same weight under the same scales.

        codes: int8 in the shape of the layer's floats, in [-127, 127]. Raises ValueError for others.
        """
        if codes.dtype != torch.int8 or codes.shape != self.codes.shape or bool((codes < -CODE_MAX).any()):
            raise ValueError(
                f"codes must be int8 {list(self.codes.shape)} of at least -{CODE_MAX}, not {_dtype(codes)} "
                f"{list(codes.shape)}"
            )
        self.weight = self._parameter(codes.to(self.weight.device).unsqueeze(0))

    @property
    def codes(self) -> Tensor:
        """The int8 codes in the shape of the layer's floats, [N, K] or [O, I, kh, kw]: a view of `weight`."""
        weight = self.weight
        # Weights of format 1 have this shape, and keep it while accelerate reads them from their file.
        return weight if weight.ndim == self.code_axes else weight.select(0, 0)

    def kernel(self, device_type: str) -> str:
        """Description of the kernel that runs the layer on "cpu" or "cuda" when it is called as a module, for the
        report.
        """
        raise NotImplementedError

    @staticmethod
    def _parameter(tensor: Tensor) -> nn.Parameter:
        return nn.Parameter(tensor, requires_grad=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        # .half(), .bfloat16() and .to(dtype) end up here. A scale rounded to fp16 would be another model, so only
        # changes of the device are applied.
        def device_only(tensor: Tensor) -> Tensor:
            # Memory formats for convolutions require four axes.
            moved = fn(tensor) if tensor.ndim <= 4 else fn(tensor.select(0, 0)).unsqueeze(0)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(device_only, recurse)

    def incoming_problem(self, state_dict: Mapping[str, Any], prefix: str) -> str | None:
        """Why the tensors of a state dict under `prefix` cannot be loaded; None if they can."""
        names = [name for name, own in self._parameters.items() if own is not None]
        found = {name: state_dict[prefix + name] for name in names if prefix + name in state_dict}
        weight = found.get("weight")
        if weight is not None and weight.dtype != torch.int8:
            return (
                f"{prefix}weight is {_dtype(weight)} where INT8 codes belong: the state dict is not of a quantized "
                "model. Load it into the floating-point model and quantize that"
            )
        codes_and_scales = [name for name in names if name != "bias"]
        given = [name for name in codes_and_scales if name in found]
        for name in codes_and_scales:
            if given and name not in found:
                return f"{prefix}{name} is missing beside {prefix}{given[0]}: codes and their scales belong together"
        for name, tensor in found.items():
            if problem := _value_problem(name, tensor):
                return f"{prefix}{name} {problem}"
        if weight is not None and weight.shape in (self.weight.shape, self.codes.shape) and not weight.is_meta:
            largest = largest_codes(*code_range(weight, self.weight_scale.shape))
            if problem := codes_problem(largest.cpu(), found["weight_scale"].cpu().view(largest.shape)):
                return f"{prefix}weight holds {problem.removesuffix(',')}: the state dict is damaged"
        return None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # Raised at once: PyTorch would copy everything that fits first, and then list every layer.
        if problem := self.incoming_problem(state_dict, prefix):
            raise RuntimeError(problem)
        weight = state_dict.get(f"{prefix}weight")
        if isinstance(weight, Tensor) and weight.ndim == self.code_axes:  # of format 1
            state_dict[f"{prefix}weight"] = weight.unsqueeze(0)
        scale = state_dict.get(f"{prefix}input_scale")
        if isinstance(scale, Tensor) and scale.ndim == 0:  # some tools store it as a scalar
            state_dict[f"{prefix}input_scale"] = scale.view(1)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def stored_layers(model: nn.Module) -> Iterator[tuple[str, Int8Storage]]:
    """All layers of a model that store codes, by name."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, Int8Storage))


def check_incoming(model: nn.Module, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
    """A load_state_dict pre-hook of the model: raise RuntimeError for what its INT8 layers refuse, before anything is
    copied.
    """
    for name, layer in stored_layers(model):
        if problem := layer.incoming_problem(state_dict, f"{prefix}{name}." if name else prefix):
            raise RuntimeError(problem)


def _value_problem(name: str, tensor: Tensor) -> str | None:
    """What is wrong with the dtype or values of a tensor to be loaded into a layer; None if nothing."""
    if name.endswith("_scale") and tensor.dtype != torch.float32:
        return f"is {_dtype(tensor)}, but scales must be float32"
    if tensor.is_meta:
        return None
    if name == "bias":
        try:
            to_fp16(tensor, "bias")
        except ValueError as error:
            return str(error).removeprefix("the bias ")
        return None
    problem = scale_problem(tensor) if name.endswith("_scale") else None
    return f"holds {problem.removesuffix(',')}: the state dict is damaged" if problem else None


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def encode(weight: Tensor, channel_axis: int, rotation: int = 0) -> tuple[Tensor, Tensor]:
    """Quantize a float weight of any shape, with one scale per index of `channel_axis`.

    rotation: group size in which a linear's rows are rotated first (`kernels.reference.rotate`), 0 for none.

    Returns int8 codes in the weight's shape and an fp32 scale that broadcasts over it. Channels whose scale would be
    denormal, which some devices flush to zero, become zeros. Raises `ValueError` for NaN or inf.
    """
    codes, scale = empty_encoding(weight, channel_axis)
    encode_into(codes, scale, weight, channel_axis, rotation)
    return codes, scale


def empty_encoding(weight: Tensor, channel_axis: int) -> tuple[Tensor, Tensor]:
    """Uninitialized results of `encode`."""
    scale_shape = [size if axis == channel_axis else 1 for axis, size in enumerate(weight.shape)]
    codes = torch.empty_like(weight, dtype=torch.int8, memory_format=torch.contiguous_format)
    return codes, weight.new_empty(scale_shape, dtype=torch.float32)


def encode_into(codes: Tensor, scale: Tensor, weight: Tensor, channel_axis: int, rotation: int = 0) -> None:
    """`encode` into the tensors from `empty_encoding`. Works in slices along the first axis, so that only a few
    megabytes of floats exist beside the result. Raises `ValueError` for NaN or inf; the codes are then not filled.
    """
    others = tuple(axis for axis in range(weight.ndim) if axis != channel_axis)
    at_once = PIECE if weight.device.type == "cpu" else _ENCODE_ELEMENTS
    rows = max(1, at_once // max(1, weight[0].numel()))
    parts = [rotated(part, rotation, alone=True).abs().amax(others, keepdim=True) for part in weight.split(rows)]
    absmax = (torch.cat(parts) if channel_axis == 0 else torch.stack(parts).amax(0)).float()
    scale.copy_(scale_from_absmax(torch.where(absmax < SMALLEST_ABSMAX, 0, absmax)))
    if not bool(scale.isfinite().all()):
        raise ValueError("the weight holds NaN or inf, so it has no INT8 scale")
    for start in range(0, weight.shape[0], rows):
        part_scale = scale[start : start + rows] if channel_axis == 0 else scale
        part = rotated(weight[start : start + rows], rotation, alone=True)
        codes[start : start + rows] = (
            _quantize_alone(part, part_scale) if at_once == PIECE else quantize(part, part_scale)
        )


def rotated(rows: Tensor, rotation: int, alone: bool = False) -> Tensor:
    """`reference.rotate` of rows [M, K] without a gradient; a rotation of 0 returns the rows.

    On a CPU it runs the compiled kernel, which is bit-identical in a tenth of the time. alone: on this thread only, for
    callers that are themselves parallel.
    """
    if not rotation:
        return rows
    if rows.device.type == "cpu":
        return rotate_rows(rows.detach().float().contiguous(), rotation, alone)
    return rotate(rows.detach(), rotation)


def _quantize_alone(x: Tensor, scale: Tensor) -> Tensor:
    """`quantize` for one thread, in sizes that PyTorch does not parallelize. `round` is parallel from 2048 elements on;
    adding a number whose last digit is the ones rounds the same way, half to even.
    """
    return (x.float() / scale).clamp_(-CODE_MAX, CODE_MAX).add_(_ONES_ARE_LAST).sub_(_ONES_ARE_LAST).to(torch.int8)


def all_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or inf; on a CPU checked by this thread only."""
    return all(bool(part.isfinite().all()) for part in pieces(tensor))


def to_fp16(tensor: Tensor, what: str) -> Tensor:
    """Floats as they are stored. Raises `ValueError`, calling the tensor `what`, for NaN, inf and values beyond
    fp16.
    """
    half = tensor
    if tensor.dtype != torch.float16:
        half = torch.empty_like(tensor, dtype=torch.float16)
        copy_pieces(half, tensor)
    if not all_finite(half):
        if not all_finite(tensor):
            raise ValueError(f"the {what} holds NaN or inf")
        raise ValueError(f"the {what} holds {tensor.abs().max().item():g}, which fp16 (at most 65504) cannot store")
    return half


def copy_pieces(target: Tensor, source: Tensor) -> None:
    """`target.copy_(source)` for tensors of one shape; on a CPU by this thread only."""
    if target.is_contiguous() and source.is_contiguous():
        for to, part in zip(pieces(target), pieces(source), strict=True):
            to.copy_(part)
    else:
        target.copy_(source)
