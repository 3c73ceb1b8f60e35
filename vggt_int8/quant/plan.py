"""From a recipe and a module to a plan: the layers that the recipe decides, and what each becomes.

This module knows no layer names of its own. A recipe that does not fit the model is an error that names the rule.
"""

from dataclasses import dataclass, replace

from torch import nn

from vggt_int8.patterns import fits
from vggt_int8.plain_data import shown
from vggt_int8.quant.attention import attention_by
from vggt_int8.quant.layer import Int8Layer
from vggt_int8.quant.layer_types import WITH_WEIGHTS, int8_type
from vggt_int8.quant.replaceable import Keeping, every_name
from vggt_int8.recipe import (
    Recipe,
    RecipeError,
    Rule,
    Scheme,
    expand,
    families,
    find_family,
    known_words,
    names_groups,
)


@dataclass(frozen=True)
class LayerPlan:
    """What one layer becomes. scheme: how it computes; None keeps the layer, for `reason`. unable: it is kept although
    the recipe quantizes it.
    """

    name: str
    scheme: Scheme | None
    reason: str = ""
    unable: bool = False
    becomes: type[Int8Layer] | None = None


def recipe_for(model: nn.Module, recipe: Recipe) -> Recipe:
    """The recipe with its groups of layers expanded to patterns, by the map of the model's family.

    The result decides the layers of `model` without a map. A recipe without groups applies to any module. Raises
    `RecipeError` if the recipe has groups and the model's family has no map.
    """
    modules = {name for name, _ in every_name(model)}
    family = find_family(getattr(getattr(model, "config", None), "model_type", None), modules)
    if family is not None:
        # A foreign network of the family may join the frames of a scene before its layers, and states no number of
        # special tokens.
        expanded = expand(recipe, family, getattr(model, "special_tokens", {}))
        return replace(expanded, rules=_without_covered(expanded.rules, model)) if recipe.rules else expanded
    if names_groups(recipe):
        layer = next((name for name, module in every_name(model) if isinstance(module, WITH_WEIGHTS)), "")
        names = f" (its layers have names such as {layer!r})" if layer else ""
        raise RecipeError(
            f"recipe {recipe.name!r} chooses for groups of layers, and no map says which a {type(model).__name__} has"
            f"{names}: there are maps for {', '.join(family.name for family in families())}. Write include, exclude or "
            "rules with patterns on the names of its layers"
        )
    return recipe


def _without_covered(rules: tuple[Rule, ...], model: nn.Module) -> tuple[Rule, ...]:
    """The rules without those of groups whose layers are all decided by earlier rules of the recipe itself."""
    layers = {name for name, module in every_name(model) if isinstance(module, WITH_WEIGHTS)}
    left, kept = set(layers), []
    for rule in rules:
        fitting = {name for name in layers if fits(rule.match, name)}
        if not (rule.source and fitting and fitting.isdisjoint(left)):
            kept.append(rule)
        left -= fitting
    return tuple(kept)


def make_plan(model: nn.Module, recipe: Recipe) -> dict[str, LayerPlan]:
    """Decide every `nn.Linear`, `nn.Conv2d` and `nn.ConvTranspose2d` of `model`, in module order. A module with several
    names has an entry for each.

    Works on meta tensors. Layers that an INT8 layer cannot replace are kept (see `replaceable`).

    Raises `RecipeError` if a rule, `include` or `exclude` matches nothing although the model has that part; if a rule
    decides another number of layers than it states for the full size; if one module is decided differently under two
    names; if a recipe for INT8 quantizes nothing; or if the network does not support its global attention.
    """
    recipe = recipe_for(model, recipe)
    attention_by(recipe, model)
    layers = {name: module for name, module in every_name(model) if isinstance(module, WITH_WEIGHTS)}
    keeping = Keeping(model)
    alone: tuple[str, ...] = getattr(model, "special_alone", ())
    hits = [0] * len(recipe.rules)
    plan: dict[str, LayerPlan] = {}
    for name, module in layers.items():
        index, scheme, reason = _decide(name, recipe)
        if scheme is not None and scheme.special_tokens and name.startswith(alone):
            scheme = replace(scheme, special_tokens=0)  # no other tokens that would need another scale
        if index is not None:
            hits[index] += 1
        unable = keeping.reason(module) if scheme is not None else ""
        if unable:
            scheme, reason = None, unable
        if scheme is None:
            plan[name] = LayerPlan(name, None, reason, bool(unable))
        else:
            becomes = int8_type(module)
            plan[name] = LayerPlan(name, becomes.narrowed(scheme), becomes=becomes)
    _check_hits(model, recipe, hits)
    _check_alike(model, recipe, plan)
    for option in ("include", "exclude"):
        for pattern in getattr(recipe, option):
            if pattern != ".*" and not any(fits(pattern, name) for name in plan):
                group = " (the name of a group, but no map of groups holds here)" if pattern in known_words() else ""
                raise RecipeError(
                    f"recipe {recipe.name!r}: {option} {shown(pattern)} matches no layer of this model{group}"
                )
    _check_not_idle(recipe, plan)
    return plan


def _decide(name: str, recipe: Recipe) -> tuple[int | None, Scheme | None, str]:
    if any(fits(pattern, name) for pattern in recipe.exclude):
        return None, None, "excluded"
    for index, rule in enumerate(recipe.rules):
        if fits(rule.match, name):
            return index, recipe.rule_scheme(rule), rule.reason or "kept by a rule"
    if recipe.weights == "int8" and any(fits(pattern, name) for pattern in recipe.include):
        return None, recipe.scheme, ""
    return None, None, "no rule matches"


def _check_hits(model: nn.Module, recipe: Recipe, hits: list[int]) -> None:
    modules = dict(model.named_modules())
    is_1b = bool(recipe.vggt_1b) and all(
        path in modules and len(list(modules[path].children())) == count for path, count in recipe.vggt_1b.items()
    )
    excluded = bool(recipe.exclude)  # removes layers from rules, which makes their counts meaningless
    for rule, count in zip(recipe.rules, hits, strict=True):
        if rule.part and rule.part not in modules:
            if count:
                raise RecipeError(
                    f"recipe {recipe.name!r}, {rule.where}: decides {count} layers of this model, but its part "
                    f"{shown(rule.part)} is no module of it. Correct the part."
                )
            continue
        if count == 0 and not excluded:
            raise RecipeError(
                f"recipe {recipe.name!r}, {rule.where}: decides no layer of this model. "
                "Correct the expression, or move the rule above the one that takes its layers."
            )
        if is_1b and rule.layers is not None and count != rule.layers and not excluded:
            raise RecipeError(
                f"recipe {recipe.name!r}, {rule.where}: decides {count} layers, but states {rule.layers} for the full "
                "size"
            )


def _check_alike(model: nn.Module, recipe: Recipe, plan: dict[str, LayerPlan]) -> None:
    """A module with several names must be decided the same under all of them."""
    first: dict[nn.Module, LayerPlan] = {}
    for name in plan:
        layer = first.setdefault(model.get_submodule(name), plan[name])
        if layer.scheme != plan[name].scheme:
            one, other = (entry.scheme.label if entry.scheme else entry.reason for entry in (layer, plan[name]))
            raise RecipeError(
                f"recipe {recipe.name!r}: {layer.name} and {name} are one module, but it decides them differently "
                f"({one}; {other}). Write patterns that take both names, or neither"
            )


def _check_not_idle(recipe: Recipe, plan: dict[str, LayerPlan]) -> None:
    """A recipe for INT8 must quantize something; otherwise it was written for other names, or a wrapper added a
    prefix.
    """
    wants_int8 = recipe.weights == "int8" or any(rule.weights == "int8" for rule in recipe.rules)
    if wants_int8 and not any(layer.scheme for layer in plan.values()):
        unable = next((layer for layer in plan.values() if layer.unable), None)
        layers = f"its layers have names such as {next(iter(plan))!r}" if plan else "it has no linear or convolution"
        layers = layers if unable is None else f"{unable.name!r} cannot be replaced: {unable.reason}"
        raise RecipeError(f"recipe {recipe.name!r} quantizes no layer of this model: {layers}")
