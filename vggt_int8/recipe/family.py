"""Network families: the layers of a family in named groups, as data in `vggt_int8/families/*.toml`.

A map has these entries for each group:

    match: regular expression on the full names of its layers; no layer matches two groups.
    part: module whose absence (a disabled head) means that the group is absent.
    layers: number of layers at the family's full size, checked on every model of that size.
    reason: what the group is, for the report on layers that are kept.
    special_tokens: true if its layers see all tokens of a frame, [..., P, C], the special ones (camera and registers,
        or class and registers) first.

`sets` name several groups at once. A family is recognized by `model_types` (of a model's config) and `modules` (names
that a model must have). `full_size` lists modules and their numbers of children.

`seams` list where a factor per channel can move from the module that writes a linear's inputs to that linear, without
changing the function:

    match: regular expression on the names of modules (blocks); the names below are relative to such a module.
    norms: LayerNorm with weight and bias -> the only linear that reads its output.
    values: linear whose outputs are queries, keys and values, a third each -> the linear after attention. Attention
        mixes tokens and not channels, so input i of the latter is a weighted mean of value channel i.
"""

import functools
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from vggt_int8.patterns import fits
from vggt_int8.plain_data import shown
from vggt_int8.recipe.checks import RecipeError, at, integer, no_unknown_keys, regular_expression, text, texts
from vggt_int8.recipe.lines import key_lines

FAMILY_FOLDER = Path(__file__).parent.parent / "families"


@dataclass(frozen=True)
class Group:
    """Layers that a recipe decides together; the module docstring explains the fields."""

    name: str
    match: str
    part: str
    layers: int
    reason: str
    special_tokens: bool = False
    line: int = 0

    def __post_init__(self) -> None:
        for name in ("match", "part", "reason"):
            text(name, getattr(self, name))
        integer("layers", self.layers, 1)
        regular_expression("match", self.match)


@dataclass(frozen=True)
class Seams:
    """Pairs of modules between which channel factors can move; the module docstring explains the fields."""

    match: str
    norms: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        text("match", self.match)
        regular_expression("match", self.match)
        for name in ("norms", "values"):
            pairs = getattr(self, name)
            if not isinstance(pairs, Mapping) or not all(isinstance(reader, str) for reader in pairs.values()):
                raise RecipeError(f"{name} is {shown(pairs)}; it must be a table of module = module", name)
        if unknown := [writer for writer in self.values if writer not in self.norms.values()]:
            raise RecipeError(f"values names {shown(unknown[0])}, which reads none of norms", "values")


@dataclass(frozen=True)
class Family:
    """The map of one family. source: the file it was read from."""

    name: str
    groups: Mapping[str, Group]
    sets: Mapping[str, tuple[str, ...]]
    modules: tuple[str, ...]
    model_types: tuple[str, ...]
    full_size: Mapping[str, int]
    full_size_name: str
    source: str
    seams: tuple[Seams, ...] = ()

    @classmethod
    def from_toml(cls, content: str, source: str) -> "Family":
        """Parse a map. Raises `RecipeError` that names the line."""
        data, lines = tomllib.loads(content), key_lines(content)[0]
        no_unknown_keys(data, {f.name for f in fields(cls)} - {"source"}, source, lines)
        groups = {}
        for name, entries in data["groups"].items():
            begin = f"groups.{name}."
            own = {key.removeprefix(begin): line for key, line in lines.items() if key.startswith(begin)}
            own[""] = lines.get(f"groups.{name}", 0)
            no_unknown_keys(entries, {f.name for f in fields(Group)} - {"name", "line"}, source, own)
            try:
                groups[name] = Group(name, **entries, line=own[""])
            except RecipeError as error:
                raise RecipeError(f"{at(source, own.get(error.key, own['']))}: {error}") from error
        sets = {name: texts(name, members) for name, members in data.get("sets", {}).items()}
        for name, members in sets.items():
            where = at(source, lines.get(f"sets.{name}"))
            if name in groups:
                raise RecipeError(f"{where}: {shown(name)} is a group already")
            if unknown := [member for member in members if member not in groups]:
                raise RecipeError(f"{where}: {shown(unknown[0])} is no group; known are {', '.join(groups)}")
        seams = []
        for entries in data.get("seams", ()):
            no_unknown_keys(entries, {f.name for f in fields(Seams)}, source, {"": lines.get("seams", 0)})
            try:
                seams.append(Seams(**entries))
            except RecipeError as error:
                raise RecipeError(f"{at(source, lines.get('seams'))}, [[seams]]: {error}") from error
        return cls(
            name=data["name"],
            groups=groups,
            sets=sets,
            modules=texts("modules", data["modules"]),
            model_types=texts("model_types", data["model_types"]),
            full_size=data["full_size"],
            full_size_name=data["full_size_name"],
            source=source,
            seams=tuple(seams),
        )

    @property
    def words(self) -> list[str]:
        """The names that a recipe may use: groups, then sets."""
        return [*self.groups, *self.sets]

    def group_of(self, layer: str) -> str:
        """The name of the group that a layer is in. Raises `RecipeError` if it is in none."""
        for group in self.groups.values():
            if fits(group.match, layer):
                return group.name
        raise RecipeError(f"{shown(layer)} is in no group of the family {self.name}")

    def members(self, words: Iterable[str]) -> list[Group]:
        """The groups that these words name, in the map's order; unknown words are ignored."""
        named = {group for word in words for group in self.sets.get(word, (word,))}
        return [group for name, group in self.groups.items() if name in named]


@functools.cache
def families() -> tuple[Family, ...]:
    """All shipped maps, by name."""
    return tuple(
        Family.from_toml(path.read_text(encoding="utf-8"), path.name) for path in sorted(FAMILY_FOLDER.glob("*.toml"))
    )


def find_family(model_type: Any, modules: Collection[str], among: Iterable[Family] | None = None) -> Family | None:
    """The family of a model, by the `model_type` of its config, else by its modules; None if there is none.

    If the modules match several families, the one that requires the most modules wins.
    """
    among = families() if among is None else among
    if named := [family for family in among if model_type in family.model_types]:
        return named[0]
    fitting = [family for family in among if all(module in modules for module in family.modules)]
    return max(fitting, key=lambda family: len(family.modules), default=None)


def known_words() -> list[str]:
    """The names of groups and sets in all families, without duplicates."""
    return list(dict.fromkeys(word for family in families() for word in family.words))
