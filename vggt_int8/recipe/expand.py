"""Rewrites a recipe's choices by group as rules by pattern, for one family; the result needs no map."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from vggt_int8.plain_data import shown
from vggt_int8.recipe.checks import RecipeError
from vggt_int8.recipe.family import Family, Group, known_words
from vggt_int8.recipe.recipe import PATTERNS_ALONE, Recipe
from vggt_int8.recipe.rule import Rule
from vggt_int8.recipe.scheme import CHOICES, ROTATED_CHOICE

NO_TOKENS: Mapping[str, int] = MappingProxyType({})


def expand(recipe: Recipe, family: Family, special_tokens: Mapping[str, int] = NO_TOKENS) -> Recipe:
    """The recipe with every group replaced by patterns; on that family it decides the same as `recipe`.

    special_tokens: part of the model -> number of tokens before the patches of each frame in its layers; empty for a
        model whose layers see joined frames.

    Checkpoints store such recipes, so later changes of a map do not affect them. Raises `RecipeError` if two sets
    choose differently for one group, and if include or exclude name groups that only another family has.
    """
    if recipe.format == PATTERNS_ALONE:
        return recipe
    included, include = _parted(recipe, "include", family)
    excluded, exclude = _parted(recipe, "exclude", family)
    choices = _choices(recipe, family)
    if recipe.groups and not recipe.include and recipe.weights == "int8":
        included = list(family.groups.values())
    rules = [_rule(group, family, "keep", "excluded") for group in excluded]
    rules += recipe.rules
    for group in family.groups.values():
        if group not in excluded and (group.name in choices or group in included):
            rules.append(_rule(group, family, choices.get(group.name)))
    if recipe.rules:  # which may take layers away from groups, so that counts no longer say anything
        rules = [replace(rule, layers=None) if rule.source else rule for rule in rules]
    if recipe.special_tokens == "own":
        apart = {group.match for group in family.groups.values() if group.special_tokens}
        rules = [
            replace(rule, special_tokens=special_tokens.get(rule.part, 0))
            if rule.source and rule.match in apart
            else rule
            for rule in rules
        ]
    return replace(
        recipe,
        groups={},
        rules=tuple(rules),
        include=tuple(include),
        exclude=tuple(exclude),
        vggt_1b=recipe.vggt_1b or (dict(family.full_size) if any(rule.source for rule in rules) else {}),
        format=PATTERNS_ALONE,
    )


def names_groups(recipe: Recipe) -> bool:
    """Whether the recipe needs a family's map."""
    return recipe.format != PATTERNS_ALONE and bool(recipe.groups)


def _parted(recipe: Recipe, key: str, family: Family) -> tuple[list[Group], list[str]]:
    """The groups and the patterns in an entry of the recipe."""
    words, patterns = [], []
    for entry in getattr(recipe, key):
        if entry in family.words:
            words.append(entry)
        elif entry in known_words():
            raise RecipeError(
                f"recipe {recipe.name!r}: {key} names {shown(entry)}, a group that the family {family.name} does not "
                f"have; it has {', '.join(family.words)}"
            )
        else:
            patterns.append(entry)
    return family.members(words), patterns


def _choices(recipe: Recipe, family: Family) -> dict[str, str]:
    """Group -> choice, for the groups that the recipe names; a group's own entry overrides those of its sets."""
    by_set: dict[str, str] = {}
    named: dict[str, str] = {}
    for word in family.sets.keys() & recipe.groups.keys():
        for name in family.sets[word]:
            other = by_set.setdefault(name, word)
            if recipe.groups[other] != recipe.groups[word] and name not in recipe.groups:
                raise RecipeError(
                    f"recipe {recipe.name!r}: {name} is in {other} = {recipe.groups[other]!r} and in {word} = "
                    f"{recipe.groups[word]!r}: choose for {name} itself"
                )
            named[name] = recipe.groups[word]
    return named | {name: choice for name, choice in recipe.groups.items() if name in family.groups}


def _rule(group: Group, family: Family, choice: str | None, reason: str = "") -> Rule:
    """choice: None for the recipe's default."""
    activations = CHOICES[choice] if choice else ""
    weights = ("int8" if activations else "keep") if choice else ""
    return Rule(
        match=group.match,
        part=group.part,
        weights=weights,
        activations=activations,
        layers=group.layers,
        reason=reason or group.reason,
        rotated=choice == ROTATED_CHOICE,
        line=group.line,
        source=family.source,
    )
