"""Recipes: which layers become INT8, and how. Data only; the names of VGGT's layers live in the TOML files.

A recipe is a default scheme and an ordered list of rules. A rule's `match` is a regular expression that must match
the whole module name (as `re.fullmatch`, but in linear time: see `vggt_int8.patterns` for what that leaves out); the
first rule that matches a layer decides. Layers are `nn.Linear`, `nn.Conv2d` and `nn.ConvTranspose2d` modules. A layer
that no rule matches is kept.

The same object can be written in Python, without rules, for any module:

    Recipe(weights="int8", activations="dynamic", include=[r".*\\.mlp\\..*"], exclude=[r"head\\..*"])

`exclude` comes before the rules and `include` after them.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from vggt_int8.patterns import PatternError, compile_pattern
from vggt_int8.plain_data import shown

RECIPE_FORMAT = 1
MOST_STATES = 10_000  # of all patterns together; the shipped recipes have 1,500. Matching takes seconds at most
_MOST_BYTES = 1_000_000  # of a recipe's file
_LONGEST_NAME = 200
_WORDS = {"name", "description", "format"}  # keys that say nothing of layers
_PATTERNS = ("include", "exclude", "attention_layers")  # keys that hold regular expressions
RECIPE_FOLDER = Path(__file__).parent / "recipes"

WEIGHTS = ("int8", "keep")
ACTIVATIONS = ("none", "dynamic", "static")
OBSERVERS = ("minmax", "histogram", "per_channel")
KEEP_DTYPES = ("fp16",)
ATTENTIONS = ("float", "int8")


class RecipeError(ValueError):
    """A recipe that cannot be read, contradicts itself, or does not fit the model. The message names the line.

    key: the entry of the recipe at fault, where it is one; who reads a file adds its line.
    """

    def __init__(self, message: str, key: str = "") -> None:
        super().__init__(message)
        self.key = key


@dataclass(frozen=True)
class Scheme:
    """How one quantized linear computes. Weights are int8 per output channel in every scheme.

    activations: "none" (W8A16: weight-only), "dynamic" (W8A8: one scale per token, found at run time) or
        "static" (W8A8: one scale per layer, from calibration).
    outlier_threshold: 0, or the LLM.int8() threshold: input columns that reach it stay in floating point.
    """

    activations: str = "dynamic"
    outlier_threshold: float = 0.0

    def __post_init__(self) -> None:
        _one_of("activations", self.activations, ACTIVATIONS)
        threshold = self.outlier_threshold
        if isinstance(threshold, bool) or not isinstance(threshold, int | float):
            raise RecipeError(f"outlier_threshold is {shown(threshold)}; it must be a number", "outlier_threshold")
        if not 0 <= threshold < float("inf"):
            raise RecipeError(
                f"outlier_threshold is {shown(threshold)}; it must be 0 (off) or positive", "outlier_threshold"
            )
        if threshold and self.activations != "dynamic":
            raise RecipeError(
                f"outlier_threshold {threshold} needs activations = 'dynamic', not {self.activations!r}",
                "outlier_threshold",
            )

    @property
    def label(self) -> str:
        """Short name for tables: "W8A16", "W8A8 dynamic", "W8A8 static" or "LLM.int8()"."""
        if self.outlier_threshold:
            return "LLM.int8()"
        return "W8A16" if self.activations == "none" else f"W8A8 {self.activations}"


@dataclass(frozen=True)
class AttentionScheme:
    """Attention whose product of queries and keys is INT8: `vggt_int8.kernels.reference_attention`."""

    label: ClassVar[str] = "INT8 QK"


@dataclass(frozen=True)
class Rule:
    """One line of a recipe.

    match: regular expression on the whole module name.
    part: module whose presence means that the rule must match something ("" when that is unknown).
    weights, activations: "" takes the recipe's default.
    layers: how many layers the rule decides on VGGT-1B; checked whenever the model has that shape.
    reason: why, shown by `quantization_report()`.
    line: line in the TOML file, for error messages (0: made in Python).
    """

    match: str
    part: str = ""
    weights: str = ""
    activations: str = ""
    layers: int | None = None
    reason: str = ""
    line: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        for name in ("match", "part", "weights", "activations", "reason"):
            _text(name, getattr(self, name))
        if self.layers is not None and type(self.layers) is not int:
            raise RecipeError(f"layers is {shown(self.layers)}; it must be an integer", "layers")
        _regular_expression("match", self.match)
        _one_of("weights", self.weights, ("", *WEIGHTS))
        _one_of("activations", self.activations, ("", *ACTIVATIONS))

    @property
    def where(self) -> str:
        """The place to look at, for messages."""
        return f"line {self.line}: match = {shown(self.match)}" if self.line else f"match = {shown(self.match)}"


@dataclass(frozen=True)
class Recipe:
    """A whole recipe; see the module's text for the order in which layers are decided.

    weights: "int8", or "keep" to quantize nothing unless a rule says so.
    activations, outlier_threshold: the default `Scheme`.
    keep: dtype in which everything else is stored; "fp16" is the checkpoint format's only one.
    include, exclude: regular expressions on module names, also a single string.
    attention: "float", or "int8": products of queries and keys in INT8, of the attention modules whose name
        `attention_layers` matches and `exclude` does not.
    observer, calibration_samples: how static activation scales are found (used with activations = "static").
    vggt_1b: module -> number of children that make a model VGGT-1B-shaped, so that `Rule.layers` applies.
    """

    name: str = "custom"
    description: str = ""
    weights: str = "int8"
    activations: str = "dynamic"
    outlier_threshold: float = 0.0
    keep: str = "fp16"
    rules: tuple[Rule, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    attention: str = "float"
    attention_layers: tuple[str, ...] = (".*",)
    observer: str = "minmax"
    calibration_samples: int = 32
    vggt_1b: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (*_PATTERNS, "rules"):
            value = getattr(self, name)
            if not isinstance(value, Iterable):
                raise RecipeError(f"{name} is {shown(value)}; it must be a list", name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        if not self.rules and not self.include and self.weights == "int8":
            object.__setattr__(self, "include", (".*",))
        self._validate()

    def _validate(self) -> None:
        _text("name", self.name)
        _text("description", self.description)
        if len(self.name) > _LONGEST_NAME or not self.name.isprintable():
            raise RecipeError(
                f"name is {shown(self.name)}; it must have at most {_LONGEST_NAME} printable characters", "name"
            )
        _one_of("weights", self.weights, WEIGHTS)
        _one_of("observer", self.observer, OBSERVERS)
        _one_of("keep", self.keep, KEEP_DTYPES)
        _one_of("attention", self.attention, ATTENTIONS)
        samples = self.calibration_samples
        if type(samples) is not int or samples < 1:
            raise RecipeError(
                f"calibration_samples is {shown(samples)}; it must be an integer >= 1", "calibration_samples"
            )
        if not isinstance(self.vggt_1b, Mapping) or not all(type(count) is int for count in self.vggt_1b.values()):
            raise RecipeError(f"vggt_1b is {shown(self.vggt_1b)}; it must be a table of module = number", "vggt_1b")
        _ = self.scheme
        for name in _PATTERNS:
            for pattern in getattr(self, name):
                _regular_expression(name, pattern)
        for rule in self.rules:
            if not isinstance(rule, Rule):
                raise RecipeError(f"rules holds {shown(rule)}, which is no Rule", "rules")
        patterns = [rule.match for rule in self.rules] + [p for name in _PATTERNS for p in getattr(self, name)]
        if (states := sum(compile_pattern(pattern).states for pattern in patterns)) > MOST_STATES:
            raise RecipeError(
                f"its {len(patterns)} patterns are too large together ({states} states of {MOST_STATES}): shorten "
                "repeats such as x{500}, or join rules",
                "rules",
            )
        if self.include and self.weights == "keep":
            raise RecipeError(
                "weights = 'keep' quantizes by rules alone, so include has no effect: use weights = 'int8'", "include"
            )

    @property
    def scheme(self) -> Scheme:
        """The default scheme."""
        return Scheme(self.activations, self.outlier_threshold)

    def rule_scheme(self, rule: Rule) -> Scheme | None:
        """The scheme a rule asks for; None when it keeps the layer."""
        if (rule.weights or self.weights) == "keep":
            return None
        activations = rule.activations or self.activations
        return Scheme(activations, self.outlier_threshold if activations == "dynamic" else 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain data (JSON-ready) from which `from_dict` makes an equal recipe; goes into `config.json`."""
        data = asdict(self)
        data["rules"] = [
            {k: v for k, v in rule.items() if v not in ("", None) and k != "line"} for rule in data["rules"]
        ]
        data |= {name: list(getattr(self, name)) for name in _PATTERNS}
        data["vggt_1b"] = dict(self.vggt_1b)
        return {"format": RECIPE_FORMAT, **data}

    @classmethod
    def from_dict(
        cls, data: Mapping[str, Any], *, lines: Sequence[Mapping[str, int]] = (), source: str = "recipe"
    ) -> "Recipe":
        """Build from plain data. `lines`: where its keys stand in `source`, see `_key_lines`.

        Raises `RecipeError` on an unknown key or value, and on a format newer than this package reads.
        """
        version = data.get("format", RECIPE_FORMAT)
        if type(version) is not int or version != RECIPE_FORMAT:
            raise RecipeError(
                f"{source}: recipe format {shown(version)}; this package reads {RECIPE_FORMAT}. Update vggt-int8."
            )
        rules = data.get("rules", [])
        if not isinstance(rules, list):
            raise RecipeError(f"{source}: rules must be a list of tables ([[rules]]), not {type(rules).__name__}")
        top, *of_rules = lines if len(lines) == len(rules) + 1 else [{}] * (len(rules) + 1)
        _no_unknown_keys(data, {f.name for f in fields(cls)} | {"format"}, source, top)
        values = {key: value for key, value in data.items() if key != "format"}
        values["rules"] = tuple(_rule(r, where, source) for r, where in zip(rules, of_rules, strict=True))
        try:
            recipe = cls(**values)
        except RecipeError as error:
            raise RecipeError(f"{_at(source, top.get(error.key))}: {error}") from error
        if data.keys() <= _WORDS:
            raise RecipeError(
                f"{source} holds no recipe: it says nothing of layers. At least weights, activations, include or rules "
                "must be there"
            )
        return recipe


def load_recipe(recipe: "str | Path | Recipe") -> Recipe:
    """A shipped name ("int8_dynamic"), a path to a TOML file, or a `Recipe` (returned as it is).

    Raises `RecipeError`: unknown name (the message lists those that exist), unreadable file, unknown key or value.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if not isinstance(recipe, str | Path):
        raise RecipeError(f"recipe is a {type(recipe).__name__}; pass a name, a path or a Recipe")
    path = Path(recipe)
    if path.suffix != ".toml":
        path = RECIPE_FOLDER / f"{recipe}.toml"
        if str(recipe) not in available_recipes():
            raise RecipeError(
                f"there is no recipe {str(recipe)!r}. Shipped: {', '.join(available_recipes())}. "
                "For a file of your own pass its path, ending in .toml."
            )
    text = _recipe_text(path)
    try:
        data = tomllib.loads(text)
    except RecursionError:
        raise RecipeError(f"{path} is nested too deep for a recipe") from None
    except ValueError as error:  # TOMLDecodeError, or a number of thousands of digits
        raise RecipeError(f"{path} is not valid TOML: {error}") from error
    return Recipe.from_dict({"name": path.stem, **data}, lines=_key_lines(text), source=str(path))


def _recipe_text(path: Path) -> str:
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe would be waited for, a device has no end
            raise RecipeError(f"cannot read the recipe {path}: it is no file")
        with path.open(encoding="utf-8") as file:
            text = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not valid TOML: {error}") from error
    if len(text) > _MOST_BYTES:
        raise RecipeError(f"{path} is no recipe: it has more than {_MOST_BYTES} characters")
    return text


def available_recipes() -> list[str]:
    """Names of the shipped recipes, sorted."""
    return sorted(path.stem for path in RECIPE_FOLDER.glob("*.toml"))


def _key_lines(text: str) -> list[dict[str, int]]:
    """Key -> line of a TOML file's top level, then of each [[rules]] table, whose own line is under ""."""
    top: dict[str, int] = {}
    tables, keys = [top], top
    for number, line in enumerate(text.splitlines(), 1):
        if re.match(r"\s*\[\[\s*rules\s*\]\]", line):
            keys = {"": number}
            tables.append(keys)
        elif table := re.match(r"\s*\[+\s*[\"']?([\w-]+)", line):
            top.setdefault(table[1], number)
            keys = {}
        elif key := re.match(r"\s*[\"']?([\w-]+)[\"']?\s*=", line):
            keys.setdefault(key[1], number)
    return tables


def _rule(data: Any, lines: Mapping[str, int], source: str) -> Rule:
    line = lines.get("", 0)
    where = _at(source, line)
    if not isinstance(data, Mapping):
        raise RecipeError(f"{where}: a rule must be a table, not {shown(data)}")
    _no_unknown_keys(data, {f.name for f in fields(Rule)} - {"line"}, source, lines)
    if not isinstance(data.get("match"), str):
        raise RecipeError(f"{where}: a rule needs match = '<regular expression>'")
    try:
        return Rule(**data, line=line)
    except RecipeError as error:
        where = _at(source, lines.get(error.key, line))
        raise RecipeError(f"{where}: {error} (in the rule with match = {shown(data['match'])})") from error


def _at(source: str, line: int | None) -> str:
    return f"{source}, line {line}" if line else source


def _no_unknown_keys(data: Mapping[str, Any], known: set[str], source: str, lines: Mapping[str, int]) -> None:
    for key in data:
        if key not in known:
            where = _at(source, lines.get(key, lines.get("")))
            raise RecipeError(f"{where}: unknown key {shown(key)}; known are {', '.join(sorted(known))}")


def _text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise RecipeError(f"{name} is {shown(value)}; it must be text", name)


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise RecipeError(f"{name} is {shown(value)}; choose one of {', '.join(repr(a) for a in allowed if a)}", name)


def _regular_expression(name: str, pattern: Any) -> None:
    try:
        compile_pattern(pattern)
    except (PatternError, TypeError) as error:  # the latter: a list or table, which no cache takes
        raise RecipeError(f"{name}: {shown(pattern)} is no regular expression here: {error}", name) from error
