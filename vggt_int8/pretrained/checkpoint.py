"""Checks a checkpoint before anything is loaded from it.

transformers loads a checkpoint with a missing scale, an extra tensor, a wrong shape or floats in an int8 slot, and at
most prints a report. Here, the headers of the safetensors files must match the model name by name, and floating-point
values must be finite; otherwise nothing is loaded and the error names the tensor.
"""

import functools
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from vggt_int8.kernels.cpu.threads import map_in_threads, pieces
from vggt_int8.listing import first_few
from vggt_int8.plain_data import shown
from vggt_int8.quant.soundness import (
    LARGEST_FP16_SCALE,
    all_alike,
    code_range,
    codes_problem,
    largest_codes,
    scale_problem,
    unused_range,
)
from vggt_int8.quant.storage import all_finite, stored_layers
from vggt_int8.saves.errors import CheckpointError
from vggt_int8.saves.pickles import load_pickle
from vggt_int8.saves.plain_files import in_two_files, opened

_FLOATS = {"F64", "F32", "F16", "BF16"}
_SAFETENSORS_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int8: "I8",
}
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I8": 1}
_SCALES = (".weight_scale", ".input_scale")
_SHOWN = 5  # tensor names, or problems, in a message


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as described by its file: dtype in safetensors' notation ("F32", "I8", ...), shape, file."""

    dtype: str
    shape: tuple[int, ...]
    file: str


def validate_checkpoint(
    model: nn.Module,
    state_dict: Mapping[str, Any] | None,
    files: Iterable[str] | None,
    *,
    quantizing: bool,
    dropped: Mapping[str, Tensor],
) -> None:
    """Compare a checkpoint with the model that is about to be filled from it.

    model: with its INT8 layers in place, on the meta device.
    quantizing: the checkpoint is in floating point and is quantized while it is read, with its values checked on the
        way; otherwise values are checked here.
    dropped: tensors of the checkpoint, by name, that a quantized model does not have.

    Raises `CheckpointError` for unreadable files, missing or unexpected tensors, wrong shapes or dtypes, NaN and inf,
    and values that the compute dtype or the format cannot represent.
    """
    if state_dict is not None:
        stored = {name: _describe(tensor, "state dict") for name, tensor in state_dict.items()}
    else:
        stored = read_headers(files or ())
    expected = {**_expected(model, quantizing), **dropped}
    quantized = not quantizing and getattr(model, "quantization_plan", None) is not None
    problems = [*_name_problems(model, expected, stored, quantizing)]
    problems += _tensor_problems(expected, stored, quantizing, quantized)
    if problems:
        more = f"; and {len(problems) - _SHOWN} more problems" if len(problems) > _SHOWN else ""
        raise CheckpointError("; ".join(problems[:_SHOWN]) + more)
    if not quantizing:
        _check_values(_tensors(state_dict, files), model)


def _check_values(tensors: Iterable[tuple[str, Tensor]], model: nn.Module) -> None:
    slots = model.state_dict()
    damaged: dict[str, list[str]] = {}
    beyond_fp16 = []

    kept: dict[str, Tensor] = {}  # scales, and of codes the largest of each channel
    alike: list[str] = []

    def look(item: tuple[str, Tensor]) -> tuple[str, str | None, bool]:
        """Name, damage, and whether a value is beyond fp16."""
        name, tensor = item
        slot = slots.get(name)
        if slot is None:  # of a head that is switched off
            return name, None, False
        if tensor.dtype == torch.int8:
            low, high = code_range(tensor, slots[f"{name}_scale"].shape)
            kept[name] = largest_codes(low, high)
            if all_alike(low, high, tensor.numel()):
                alike.append(name)
            return name, None, False
        if name.endswith(_SCALES):
            kept[name] = tensor.clone()
            return name, scale_problem(tensor, LARGEST_FP16_SCALE), False
        damage = None if all_finite(tensor) else "NaN or inf"
        narrower = slot.dtype == torch.float16 != tensor.dtype
        return name, damage, narrower and not all(all_finite(part.to(slot.dtype)) for part in pieces(tensor))

    for name, damage, beyond in map_in_threads(look, tensors):
        if damage is not None:
            damaged.setdefault(damage, []).append(name)
        elif beyond:
            beyond_fp16.append(name)
    largest = {name: codes for name, codes in kept.items() if not name.endswith(_SCALES)}
    for name, codes in largest.items():
        if found := codes_problem(codes, kept[f"{name}_scale"]):
            damaged.setdefault(found, []).append(name)
    if damaged:
        problems = "; ".join(f"{damage} in {_listed(names)}" for damage, names in damaged.items())
        raise CheckpointError(f"{problems}: the checkpoint is damaged, download or make it again")
    if beyond_fp16:
        raise CheckpointError(
            f"values in {_listed(beyond_fp16)} are beyond fp16 (at most 65504): load with another dtype, such as "
            "torch.bfloat16 or torch.float32"
        )
    _warn_of_odd_codes(largest, sorted(alike))


def check_incoming_values(model: nn.Module, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
    """A load_state_dict pre-hook of a quantized VGGT: checks codes and scales as those of a checkpoint's files.

    The hook of `vggt_int8.quant` refuses beforehand what no INT8 layer accepts. Raises RuntimeError.
    """
    found = {}
    for layer, module in stored_layers(model):
        for name in ("weight", "weight_scale", "input_scale"):
            tensor, slot = state_dict.get(f"{prefix}{layer}.{name}"), getattr(module, name, None)
            if tensor is not None and slot is not None and not tensor.is_meta and tensor.numel() == slot.numel():
                found[f"{layer}.{name}"] = tensor.detach()
    try:
        _check_values(found.items(), model)
    except CheckpointError as error:
        raise RuntimeError(str(error)) from error


def _warn_of_odd_codes(largest: Mapping[str, Tensor], alike: list[str]) -> None:
    if alike:
        warnings.warn(
            f"all codes of a layer are the same number in {_listed(alike)}: nobody has trained these, or they are "
            "damaged (verify=True tells, where there are digests)",
            stacklevel=2,
        )
    unused = {name: count for name, codes in largest.items() if (count := unused_range(codes))}
    if unused:
        warnings.warn(
            f"{sum(unused.values())} channels, in {_listed(list(unused))}, have no code of 127 or -127, as channels "
            "quantized here do: another tool made them, or they are damaged (verify=True tells, where there are "
            "digests)",
            stacklevel=2,
        )


def read_headers(files: Iterable[str]) -> dict[str, StoredTensor]:
    """Names, dtypes and shapes of tensors in safetensors files, without their data; pickle files are read with
    `weights_only`.

    Raises `CheckpointError` for a file that is missing, unreadable, truncated, corrupted or empty, and for a tensor
    that is in two files.
    """
    stored: dict[str, StoredTensor] = {}
    for file in files:
        found: Iterable[tuple[str, StoredTensor]]
        if file.endswith(".safetensors"):
            with opened(file) as handle:
                parts = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118  (not a mapping)
                found = [(k, StoredTensor(p.get_dtype(), tuple(p.get_shape()), file)) for k, p in parts.items()]
        else:
            found = ((name, _describe(tensor, file)) for name, tensor in load_pickle(file).items())
        for name, tensor in found:
            if name in stored:
                raise in_two_files(name, stored[name].file, file)
            stored[name] = tensor
    return stored


def stored_bytes(files: Iterable[str]) -> dict[str, int]:
    """Bytes of tensor data in safetensors files by dtype, such as `{"I8": 1238825088, "F16": ...}`."""
    sizes: Counter[str] = Counter()
    for tensor in read_headers(files).values():
        sizes[tensor.dtype] += math.prod(tensor.shape) * _BYTES[tensor.dtype]
    return dict(sizes)


def _describe(tensor: Tensor, file: str) -> StoredTensor:
    dtype = _SAFETENSORS_NAMES.get(tensor.dtype, str(tensor.dtype))
    if tensor.layout != torch.strided or tensor.is_meta:
        dtype = f"{dtype} ({'no data' if tensor.is_meta else tensor.layout})"  # which no slot takes
    return StoredTensor(dtype, tuple(tensor.shape), file)


def _expected(model: nn.Module, quantizing: bool) -> dict[str, Tensor]:
    """The model's tensors by name; if it is to be quantized, in the shapes of floats and without scales."""
    expected = dict(model.state_dict())
    if quantizing:
        for name, layer in stored_layers(model):
            expected.pop(f"{name}.weight_scale")
            expected[f"{name}.weight"] = layer.codes
    return expected


def _name_problems(
    model: nn.Module, expected: Mapping[str, Tensor], stored: Mapping[str, StoredTensor], quantizing: bool
) -> Iterator[str]:
    missing = [name for name in expected if name not in stored]
    switched_off = tuple(f"{name}." for name, value in vars(model).items() if value is None)  # heads, for one
    extra = [name for name in stored if name not in expected and not name.startswith(switched_off)]
    if missing:
        yield f"the checkpoint lacks {_listed(missing)}"
    if extra and quantizing and any(name.endswith(".weight_scale") for name in extra):
        yield (
            f"the checkpoint holds INT8 scales ({_listed(extra)}) but its config.json has no quantization_config: "
            "restore that file, or start from the floating-point checkpoint"
        )
    elif extra:
        yield f"the checkpoint holds tensors that this model does not have: {_listed(extra)}"


def _tensor_problems(
    expected: Mapping[str, Tensor], stored: Mapping[str, StoredTensor], quantizing: bool, quantized: bool
) -> Iterator[str]:
    for name, slot in expected.items():
        found = stored.get(name)
        if found is None:
            continue
        if found.shape != tuple(slot.shape):
            yield f"{name} has shape {shown(list(found.shape))}, the model needs {list(slot.shape)}"
        elif quantizing or slot.dtype != torch.int8:
            if found.dtype not in _FLOATS:
                yield f"{name} is stored as {found.dtype} where floating-point values belong"
            elif name.endswith("_scale") and found.dtype != "F32":
                yield f"{name} is stored as {found.dtype}, but scales must be F32"
            elif quantized and not name.endswith("_scale") and found.dtype != "F16":
                yield f"{name} is stored as {found.dtype}, but a quantized checkpoint keeps floats as F16"
        elif found.dtype != "I8":
            yield f"{name} is stored as {found.dtype} where INT8 codes belong"


def _tensors(state_dict: Mapping[str, Any] | None, files: Iterable[str] | None) -> Iterator[tuple[str, Tensor]]:
    """All tensors, one at a time."""
    if state_dict is not None:
        yield from state_dict.items()
        return
    for file in files or ():
        if not file.endswith(".safetensors"):
            yield from load_pickle(file).items()
            continue
        with safe_open(file, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118
                yield name, handle.get_tensor(name)


@contextmanager
def opened_tensors(
    state_dict: Mapping[str, Any] | None, files: Iterable[str] | None
) -> Iterator[Callable[[str], Tensor]]:
    """A lookup of a checkpoint's tensors by name, read on demand; raises KeyError for unknown names."""
    if state_dict is not None:
        yield state_dict.__getitem__
        return
    with ExitStack() as stack:
        places: dict[str, Callable[[str], Tensor]] = {}
        for file in files or ():
            if file.endswith(".safetensors"):
                handle = stack.enter_context(opened(file))
                places |= dict.fromkeys(handle.keys(), handle.get_tensor)
            else:
                places |= dict.fromkeys(tensors := load_pickle(file), tensors.__getitem__)
        yield functools.lru_cache(maxsize=4)(lambda name: places[name](name))


def _listed(names: list[str]) -> str:
    return first_few(names, _SHOWN, spell=_plain)


def _plain(name: str) -> str:
    """A tensor's name, escaped if it is unprintable or too long."""
    return name if name.isprintable() and len(name) <= 200 else shown(name, 200)
