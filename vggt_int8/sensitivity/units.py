"""The units of a measurement: layers, blocks or groups of a model, and the options of each.

The base recipe defines the first option of every layer; the other options are more accurate and use the recipe keywords
for groups. Layers that the base keeps in floating point are not units.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from vggt_int8.quant.plan import LayerPlan, make_plan
from vggt_int8.quant.quantize import plan_folds, stored_dtype
from vggt_int8.quant.replaceable import every_name
from vggt_int8.quant.smoothing import fold_
from vggt_int8.quant.temporary import temporarily_quantized
from vggt_int8.recipe import Recipe, Rule, Scheme, find_family
from vggt_int8.recipe.scheme import ROTATED_CHOICE

BY = ("group", "block", "layer")
BASE, KEEP = "base", "keep"
UPGRADES = ("weight_only", ROTATED_CHOICE, KEEP)  # what recipes say for a group, from the less exact on
ALL, STORED = "(all together)", "(floats as stored)"


@dataclass(frozen=True)
class Option:
    """One option for the layers of a unit.

    choice: "base", or the recipe keyword.
    label: the scheme for display.
    plan: schemes of its layers.
    bytes: size in a checkpoint.
    cost: storage and compute cost: the bytes, plus one for each weight that is not multiplied with INT8 activations.
    """

    choice: str
    label: str
    plan: tuple[LayerPlan, ...]
    bytes: int
    cost: int


@dataclass(frozen=True)
class Unit:
    """options: the base recipe's option first, then more accurate ones; the last one may be "keep"."""

    name: str
    layers: tuple[str, ...]
    options: tuple[Option, ...]


@dataclass(frozen=True)
class LayersChange:
    """Quantizes some layers, those of unit `unit`; see `measure.Change`."""

    unit: str
    choice: str
    plan: tuple[LayerPlan, ...]
    recipe: Recipe
    backend: str

    def made(self, model: nn.Module) -> AbstractContextManager[None]:
        return temporarily_quantized(model, self.plan, self.recipe, self.backend)


@dataclass(frozen=True)
class StoredChange:
    """Rounds all floats to fp16, as checkpoints store them: the effect of a recipe that keeps everything."""

    unit: str = STORED
    choice: str = "fp16"

    @contextmanager
    def made(self, model: nn.Module) -> Iterator[None]:
        floats = {parameter: parameter.data for parameter in model.parameters()}
        try:
            for parameter, data in floats.items():
                parameter.data = data.half().to(data.dtype)
            yield
        finally:
            for parameter, data in floats.items():
                parameter.data = data


def smooth(model: nn.Module, base: Recipe) -> None:
    """Fold the base recipe's smoothing into the floating-point `model`, in place. The model's function is unchanged
    except for rounding, and quantized layers then match those under the recipe. Other options of the units use the same
    folding.
    """
    fold_(model, plan_folds(model, make_plan(model, base), base))


def find_units(model: nn.Module, base: Recipe, by: str, upgrades: Sequence[str] | None = None) -> list[Unit]:
    """The units of `model` by "group", "block" or "layer", in module order.

    base: the recipe to be made more accurate.
    upgrades: possible replacements for the base's options, from `UPGRADES`; `usual_upgrades` by default.

    Raises `RecipeError` if the base does not fit the model, and ValueError if it quantizes nothing or needs
    calibration.
    """
    upgrades = usual_upgrades(base) if upgrades is None else upgrades
    plan = make_plan(model, base)
    layers = {layer.name: layer for layer in plan.values() if layer.scheme is not None}
    if not layers:
        raise ValueError(f"recipe {base.name!r} quantizes no layer of this model: there is nothing to measure")
    for layer in layers.values():
        if layer.scheme is not None and layer.scheme.activations == "static":
            raise ValueError(
                f"recipe {base.name!r} has {layer.scheme.label} layers such as {layer.name}, which need calibration: "
                "measure a recipe with dynamic scales"
            )
    if base.needs_calibration:
        raise ValueError(
            f"recipe {base.name!r} smooths or rounds by what calibration images show, which is not done here: measure "
            "a recipe that needs none, such as int8_rotated"
        )
    names = _unit_names(model, list(layers), by)
    members: dict[str, list[LayerPlan]] = {}
    for layer in layers.values():
        members.setdefault(names[layer.name], []).append(layer)
    return [_unit(model, name, of_unit, base, upgrades) for name, of_unit in members.items()]


def changes_of(units: Iterable[Unit], base: Recipe, backend: str) -> list[LayersChange]:
    """Every option of every unit that quantizes something, and the base recipe as a whole."""
    units = list(units)
    found = [
        LayersChange(unit.name, option.choice, option.plan, base, backend)
        for unit in units
        for option in unit.options
        if option.choice != KEEP
    ]
    whole = tuple(layer for unit in units for layer in unit.options[0].plan)
    return [*found, LayersChange(ALL, BASE, whole, base, backend)]


def stored_size(model: nn.Module) -> int:
    """Size in bytes of a model's tensors in a checkpoint."""
    return sum(_stored_bytes(name, tensor) for name, tensor in model.state_dict().items())


def other_bytes(model: nn.Module, units: Iterable[Unit]) -> int:
    """Bytes in a checkpoint of the floating-point `model` that do not belong to the units' layers."""
    inside = tuple(f"{layer}." for unit in units for layer in unit.layers)
    others = ((name, tensor) for name, tensor in model.state_dict().items() if not name.startswith(inside))
    return sum(_stored_bytes(name, tensor) for name, tensor in others)


def block_of(name: str) -> str:
    """The block of a layer: its name up to the first number, or its first three parts."""
    parts = name.split(".")
    number = next((index for index, part in enumerate(parts) if part.isdecimal()), 2)
    return ".".join(parts[: min(number + 1, len(parts))])


def _unit_names(model: nn.Module, layers: list[str], by: str) -> Mapping[str, str]:
    if by == "layer":
        return {name: name for name in layers}
    if by == "block":
        return {name: block_of(name) for name in layers}
    modules = {name for name, _ in every_name(model)}
    family = find_family(getattr(getattr(model, "config", None), "model_type", None), modules)
    if family is None:
        raise ValueError(f"no map says which groups a {type(model).__name__} has: measure by block or by layer")
    return {layer: family.group_of(layer) for layer in layers}


def usual_upgrades(base: Recipe) -> tuple[str, ...]:
    """Weight-only layers are rotated if the base recipe rotates."""
    return (ROTATED_CHOICE if base.rotation else "weight_only", KEEP)


def _unit(model: nn.Module, name: str, layers: list[LayerPlan], base: Recipe, upgrades: Sequence[str]) -> Unit:
    options = [_option(model, BASE, layers)]
    for choice in UPGRADES:
        if choice in upgrades and choice != KEEP:
            rule = Rule(match=".*", weights="int8", activations="none", rotated=choice == ROTATED_CHOICE)
            more_exact = [_more_exact(layer, base.rule_scheme(rule)) for layer in layers]
            if more_exact != layers:
                options.append(_option(model, choice, more_exact))
    if KEEP in upgrades:
        options.append(_option(model, KEEP, [LayerPlan(layer.name, None, "kept") for layer in layers]))
    return Unit(name, tuple(layer.name for layer in layers), tuple(options))


def _more_exact(layer: LayerPlan, scheme: Scheme | None) -> LayerPlan:
    """The layer under a weight-only scheme, unless it already is as accurate: weight-only, and rotated if that scheme
    is.
    """
    if layer.becomes is None or layer.scheme is None or scheme is None:
        return layer
    narrowed = layer.becomes.narrowed(scheme)
    as_exact = layer.scheme.activations == "none" and layer.scheme.rotation >= narrowed.rotation
    return layer if as_exact else replace(layer, scheme=narrowed)


def _option(model: nn.Module, choice: str, plan: list[LayerPlan]) -> Option:
    size = cost = 0
    for layer in plan:
        module = model.get_submodule(layer.name)
        stored = module if layer.becomes is None else layer.becomes.unfilled(module, layer.scheme, "auto")
        assert isinstance(stored, nn.Module)
        own = sum(_stored_bytes(f".{name}", tensor) for name, tensor in stored.state_dict().items())
        in_floats = layer.scheme is None or layer.scheme.activations == "none"
        size, cost = size + own, cost + own + in_floats * sum(p.numel() for p in module.parameters() if p.ndim > 1)
    labels = {layer.scheme.label if layer.scheme else "fp16" for layer in plan}
    return Option(choice, ", ".join(sorted(labels)), tuple(plan), size, cost)


def _stored_bytes(name: str, tensor: torch.Tensor) -> int:
    return tensor.numel() * stored_dtype(name, tensor).itemsize
