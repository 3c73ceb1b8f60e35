"""Seams: pairs of modules between which factors per channel can move without changing the model's function.

A factor f of channel j changes nothing if the module that writes the channel is divided by f and the column that reads
the channel is multiplied by f. That holds if every step in between is elementwise and proportional in each channel:

- LayerNorm with weight and bias -> the following linear (qkv, fc1, the pose branch): both parameters are divided.
- the value rows of qkv, weight and bias -> attn.proj: attention's output is a weighted mean of values over tokens.

It does not hold, so nothing is folded, in these places:

- GELU between fc1 and fc2: GELU(x / f) is not GELU(x) / f.
- queries and keys: their LayerNorm, if they have one, undoes any factor (and its parameters, over one head, are shared
  by all heads); without one, no linear reads them.
- the camera head's modulated LayerNorm, which has no weight and bias; its modulation comes from a linear through `1 +
  scale`, which is not proportional.
- a LayerNorm with several readers (that before the four projections of a dense head), or whose result the network keeps
  (the encoder's last, the camera head's first): one factor would have to suit all of them.
- LayerScale and residuals: they follow a linear, whose scale per output channel already absorbs factors of rows.
"""

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from vggt_int8.listing import first_few
from vggt_int8.patterns import fits
from vggt_int8.quant.linear import Int8Linear
from vggt_int8.quant.masked_bias import has_bias_mask
from vggt_int8.quant.plan import LayerPlan
from vggt_int8.quant.replaceable import every_name, has_call_hooks, tensor_address, tensor_owners
from vggt_int8.recipe import Family, RecipeError, find_family


@dataclass(frozen=True)
class Seam:
    """The module names of one seam.

    reader: the linear whose columns take the factors.
    norm: the LayerNorm before the reader, or before `values`.
    values: the linear with the value rows, if these are divided; else "".
    """

    reader: str
    norm: str
    values: str = ""

    @property
    def writer(self) -> str:
        """The module that is divided by the factors."""
        return self.values or self.norm


def find_seams(model: nn.Module, plan: Mapping[str, LayerPlan], recipe_name: str = "custom") -> list[Seam]:
    """The seams whose reader becomes INT8 by `plan`, for a model whose family has a map. Works on meta tensors.

    Raises `RecipeError` if there is no map for the model, or if no reader becomes INT8. Warns of seams that are
    skipped: their modules are not what the map says, occur twice, or have hooks, which would see scaled values.
    """
    modules = dict(every_name(model))
    family = _family(model, modules)
    if family is None:
        raise RecipeError(
            f"recipe {recipe_name!r}: smoothing and the observer 'per_channel' need a map that says what reads what, "
            f"and there is none for a {type(model).__name__}: leave both out",
            "smoothing",
        )
    found = [seam for seam in _seams_of(family, modules) if _takes_part(seam, modules, plan)]
    if not found:
        raise RecipeError(
            f"recipe {recipe_name!r}: smoothing has no effect, since no linear behind a LayerNorm or behind attention "
            "becomes INT8: leave smoothing = 0",
            "smoothing",
        )
    places, owners = Counter(modules.values()), tensor_owners(model)
    problems = {seam: _seam_problem(seam, modules, places, owners) for seam in found}
    if left_out := [f"{seam.reader} ({problem})" for seam, problem in problems.items() if problem]:
        warnings.warn(
            f"recipe {recipe_name!r}: quantized without smoothing: {first_few(left_out, between='; ')}",
            UserWarning,
            stacklevel=4,
        )
    return [seam for seam, problem in problems.items() if not problem]


def seams_between(model: nn.Module, quantized: nn.Module) -> list[Seam]:
    """The seams of `quantized` whose reader is an `Int8Linear`, if the float model `model` has the same modules
    there.
    """
    modules, floats = dict(every_name(quantized)), dict(every_name(model))
    family = _family(model, floats)
    found = [] if family is None else list(_seams_of(family, modules))
    return [
        seam
        for seam in found
        if isinstance(modules.get(seam.reader), Int8Linear)
        and isinstance(floats.get(seam.norm), nn.LayerNorm)
        and isinstance(floats.get(seam.writer), nn.LayerNorm if seam.writer == seam.norm else nn.Linear)
        and type(modules.get(seam.norm)) is type(floats[seam.norm])
    ]


def _family(model: nn.Module, modules: Mapping[str, nn.Module]) -> Family | None:
    return find_family(getattr(getattr(model, "config", None), "model_type", None), modules)


def _seams_of(family: Family, modules: Mapping[str, nn.Module]) -> Iterator[Seam]:
    """All seams that the map names, whether or not the modules exist."""
    for seams in family.seams:
        norm_of = {reader: norm for norm, reader in seams.norms.items()}
        for block in modules:
            if fits(seams.match, block):
                for reader, norm in norm_of.items():
                    yield Seam(f"{block}.{reader}", f"{block}.{norm}")
                for values, reader in seams.values.items():
                    yield Seam(f"{block}.{reader}", f"{block}.{norm_of[values]}", f"{block}.{values}")


def _takes_part(seam: Seam, modules: Mapping[str, nn.Module], plan: Mapping[str, LayerPlan]) -> bool:
    """Whether the reader, or the linear wrapped in its place, becomes INT8."""
    inside = f"{seam.reader}."
    layers = [layer for name, layer in plan.items() if name == seam.reader or name.startswith(inside)]
    return any(layer.scheme is not None for layer in layers)


def _seam_problem(
    seam: Seam, modules: Mapping[str, nn.Module], places: Counter[nn.Module], owners: Counter[object]
) -> str:
    """Why nothing can be folded at this seam; empty if it can."""
    for name in dict.fromkeys((seam.norm, seam.writer, seam.reader)):
        module = modules.get(name)
        if module is None:
            return f"there is no {name}"
        masks_bias = name != seam.norm and has_bias_mask(module)
        if type(module) not in ((nn.LayerNorm,) if name == seam.norm else (nn.Linear, Int8Linear)) and not masks_bias:
            return f"{name} is a {type(module).__name__}"
        own = dict(module.named_parameters(recurse=False))
        if not own.keys() >= ({"weight", "bias"} if name == seam.norm else {"weight"}):
            return f"{name} has no weight and bias of its own"
        if places[module] > 1 or any(owners[tensor_address(tensor)] > 1 for tensor in own.values()):
            return f"{name}, or its weight, is in two places of the model"
        if has_call_hooks(module):
            return f"{name} has hooks, which would see other numbers"
    reader, writer = modules[seam.reader], modules[seam.writer]
    written = writer.out_features / 3 if seam.values else writer.normalized_shape[-1]  # type: ignore[operator,index]
    return "" if written == reader.in_features else f"{seam.writer} writes {written:g} channels"
