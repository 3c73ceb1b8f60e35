"""`Rule`: one choice of a recipe for the layers whose names match a pattern."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from vggt_int8.plain_data import shown
from vggt_int8.recipe.checks import RecipeError, at, integer, no_unknown_keys, one_of, regular_expression, text
from vggt_int8.recipe.scheme import ACTIVATIONS, WEIGHTS


@dataclass(frozen=True)
class Rule:
    """One choice for the layers whose names match a pattern.

    match: regular expression on the full module name.
    part: module whose presence means that the rule must match something ("" if unknown).
    weights, activations: "" takes the recipe's default.
    layers: number of layers that the rule decides at full size; checked on models of that size.
    reason: shown by `quantization_report()`.
    rotated: whether a linear with floating-point activations is rotated, in the recipe's group size.
    special_tokens: number of tokens at the beginning of each frame with their own static scale; see `Scheme`.
    line, source: line in the TOML file (0 if made in Python), and the file if it is not the recipe's own, for messages.
    """

    match: str
    part: str = ""
    weights: str = ""
    activations: str = ""
    layers: int | None = None
    reason: str = ""
    rotated: bool = False
    special_tokens: int = 0
    line: int = field(default=0, compare=False)
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        for name in ("match", "part", "weights", "activations", "reason"):
            text(name, getattr(self, name))
        if self.layers is not None and type(self.layers) is not int:
            raise RecipeError(f"layers is {shown(self.layers)}; it must be an integer", "layers")
        regular_expression("match", self.match)
        one_of("weights", self.weights, ("", *WEIGHTS))
        one_of("activations", self.activations, ("", *ACTIVATIONS))
        integer("special_tokens", self.special_tokens, 0)
        if type(self.rotated) is not bool or (self.rotated and self.activations != "none"):
            raise RecipeError(
                f"rotated is {shown(self.rotated)}; it must be true or false, and true is for activations = 'none', "
                f"not for {self.activations!r}: others are rotated if the recipe's rotation is not 0",
                "rotated",
            )

    @property
    def where(self) -> str:
        """Its location, for messages."""
        place = ", ".join(filter(None, [self.source, f"line {self.line}" if self.line else ""]))
        return f"{place}: match = {shown(self.match)}" if place else f"match = {shown(self.match)}"


def read_rule(data: Any, lines: Mapping[str, int], source: str) -> Rule:
    """A rule from plain data. lines: where its keys are in `source`. Raises `RecipeError`, naming the line."""
    line = lines.get("", 0)
    where = at(source, line)
    if not isinstance(data, Mapping):
        raise RecipeError(f"{where}: a rule must be a table, not {shown(data)}")
    no_unknown_keys(data, {f.name for f in fields(Rule)} - {"line", "source"}, source, lines)
    if not isinstance(data.get("match"), str):
        raise RecipeError(f"{where}: a rule needs match = '<regular expression>'")
    try:
        return Rule(**data, line=line)
    except RecipeError as error:
        where = at(source, lines.get(error.key, line))
        raise RecipeError(f"{where}: {error} (in the rule with match = {shown(data['match'])})") from error


def without_defaults(data: dict[str, Any], names: Sequence[str], kind: type[Any]) -> dict[str, Any]:
    """`data` of a dataclass without those of the fields `names` that have their default value."""
    defaults = {f.name: f.default for f in fields(kind)}
    return {key: value for key, value in data.items() if key not in names or value != defaults[key]}
