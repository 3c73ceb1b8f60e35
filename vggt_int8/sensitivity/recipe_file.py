"""Write the chosen options as a recipe: by groups if the units are groups, so that it fits every model size of the
family, otherwise by patterns that match the layer names of this model.
"""

import json
import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

from torch import nn

from vggt_int8.patterns import fits
from vggt_int8.quant.layer_types import WITH_WEIGHTS
from vggt_int8.quant.plan import make_plan
from vggt_int8.quant.replaceable import every_name
from vggt_int8.recipe import Recipe, Rule
from vggt_int8.recipe.scheme import CHOICES, ROTATED_CHOICE
from vggt_int8.sensitivity.units import BASE, KEEP, Unit


def chosen_recipe(
    model: nn.Module, base: Recipe, units: Iterable[Unit], chosen: Mapping[str, str], *, by: str, name: str, about: str
) -> Recipe:
    """The base recipe with other options for some units. chosen: unit -> choice; `by`: the kind of units.

    Raises RuntimeError if the recipe decides a layer differently from the choice, which is a bug in this module.
    """
    units = list(units)
    other = {unit.name: chosen[unit.name] for unit in units if chosen[unit.name] != BASE}
    if by == "group" and not base.rules:
        recipe = replace(base, name=name, description=about, groups={**base.groups, **other})
    else:
        layers = {layer: other[unit.name] for unit in units if unit.name in other for layer in unit.layers}
        rules = tuple(_rule(pattern, choice) for pattern, choice in _patterns(layers))
        recipe = replace(base, name=name, description=about, rules=(*rules, *_still_needed(base.rules, model, layers)))
    plan = make_plan(model, recipe)
    for unit in units:
        wanted = next(option.plan for option in unit.options if option.choice == chosen[unit.name])
        for layer in wanted:
            if plan[layer.name].scheme != layer.scheme:
                raise RuntimeError(f"the recipe decides {layer.name} otherwise than it was chosen: {chosen[unit.name]}")
    return recipe


def recipe_text(recipe: Recipe, remarks: Iterable[str]) -> str:
    """A recipe as TOML text that reads back as an equal recipe. Defaults are omitted."""
    data = recipe.to_dict()
    plain = {field.name: field.default for field in fields(Recipe)}
    everything = recipe.weights == "int8" and not recipe.groups and not recipe.rules  # what include is, left out
    plain |= {"include": [".*"] if everything else [], "exclude": [], "groups": {}, "vggt_1b": {}}
    lines = [f"# {remark}" for remark in remarks]
    always = ("format", "description", "weights", "activations")
    keys = [key for key in data if key not in ("name", "rules") and (key in always or data[key] != plain.get(key))]
    tables = [key for key in keys if isinstance(data[key], Mapping)]
    lines += [f"{key} = {_value(data[key])}" for key in keys if key not in tables]
    for table in tables:
        lines += ["", f"[{table}]", *(f"{_key(key)} = {_value(value)}" for key, value in data[table].items())]
    for rule in data["rules"]:
        lines += ["", "[[rules]]", *(f"{key} = {_value(value)}" for key, value in rule.items())]
    return "\n".join(lines) + "\n"


def _still_needed(rules: Iterable[Rule], model: nn.Module, decided: Container[str]) -> list[Rule]:
    """The base's rules without those whose layers are all decided by earlier rules: a rule that decides no layer is an
    error.
    """
    found = []
    left = [name for name, module in every_name(model) if isinstance(module, WITH_WEIGHTS)]
    for rule in rules:
        fitting = [name for name in left if fits(rule.match, name)]
        left = [name for name in left if name not in fitting]
        if not fitting or any(name not in decided for name in fitting):
            found.append(rule)
    return found


def _rule(pattern: str, choice: str) -> Rule:
    if choice == KEEP:
        return Rule(match=pattern, weights="keep", reason="kept for its sensitivity")
    why = "chosen for its sensitivity"
    return Rule(pattern, weights="int8", activations=CHOICES[choice], reason=why, rotated=choice == ROTATED_CHOICE)


def _patterns(layers: Mapping[str, str]) -> list[tuple[str, str]]:
    """Layer -> choice as patterns that match exactly these names: one for each choice and part of the model."""
    parts: dict[tuple[str, ...], list[list[str]]] = {}
    for layer, choice in layers.items():
        words = layer.split(".")
        parts.setdefault((choice, *words[:2]), []).append(words)
    return [(_pattern(names), choice) for (choice, *_), names in parts.items()]


def _pattern(names: list[list[str]]) -> str:
    r"""Names as one pattern. Common prefixes appear once, and names with equal endings are grouped, as in
    `blocks\.(0|3)\.(attn\.qkv|mlp\.fc1)`.
    """
    rests: dict[str, list[list[str]]] = {}
    for first, *rest in names:
        rests.setdefault(first, []).append(rest)
    words: dict[str, list[str]] = {}
    for first, tails in rests.items():
        after = _pattern(tails) if tails != [[]] else ""
        words.setdefault(after, []).append(re.escape(first))
    return _one_of([_one_of(firsts) + (rf"\.{after}" if after else "") for after, firsts in words.items()])


def _one_of(patterns: list[str]) -> str:
    return patterns[0] if len(patterns) == 1 else f"({'|'.join(patterns)})"


def _value(value: Any) -> str:
    if isinstance(value, str) and "\\" in value and "'" not in value:
        return f"'{value}'"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value, ensure_ascii=False)  # of text, numbers and booleans TOML has JSON's spelling


def _key(key: str) -> str:
    return key if re.fullmatch(r"[\w-]+", key, re.ASCII) else json.dumps(key)
