"""`Recipe`: its fields, their validation, and conversion to and from plain data."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from vggt_int8.global_attention import check_words, has_keyframes
from vggt_int8.patterns import compile_pattern
from vggt_int8.plain_data import shown
from vggt_int8.recipe.checks import (
    RecipeError,
    at,
    integer,
    no_unknown_keys,
    one_of,
    regular_expression,
    text,
    texts,
)
from vggt_int8.recipe.family import known_words
from vggt_int8.recipe.retired import without_retired
from vggt_int8.recipe.rule import Rule, read_rule, without_defaults
from vggt_int8.recipe.scheme import (
    CHOICES,
    KEEP_DTYPES,
    OBSERVERS,
    ROTATED_CHOICE,
    ROUNDINGS,
    SPECIAL_TOKENS,
    WEIGHTS,
    Scheme,
    check_rotations,
    check_smoothing,
)

PATTERNS_ALONE, RECIPE_FORMAT = 1, 2  # format numbers
MOST_STATES = 10_000  # of all patterns together; the shipped recipes have 1,500. Matching takes seconds at most
_LONGEST_NAME = 200
_WORDS = {"name", "description", "format", "global_attention", "keyframes"}  # keys that decide no layers
_PATTERNS = ("include", "exclude")  # keys that hold names of groups or regular expressions


@dataclass(frozen=True)
class Recipe:
    """A recipe; the package docstring explains the order in which layers are decided.

    weights: "int8", or "keep" to quantize only what a group or rule names.
    activations, outlier_threshold: the default `Scheme`.
    rotation: of every layer with INT8 activations, and of linears for which a group or rule requests it; see `Scheme`.
    smoothing: 0 for none; "weights" folds channel factors into neighboring layers before rounding, determined from
        weights only; a strength up to 1, or "search", determines them from inputs on calibration images as well
        (`vggt_int8.quant.smoothing`).
    rounding: of the weights of linears: to the "nearest" code, or "gptq", which uses the layers' inputs on calibration
        images (`vggt_int8.quant.gptq`).
    keep: dtype in which everything else is stored; the checkpoint format only has "fp16".
    groups: name of a group or set of the model's family -> "keep", "weight_only", "weight_only_rotated", "dynamic" or
        "static".
    rules: choices by patterns on names; the first match decides.
    include, exclude: names of groups and sets, or regular expressions on module names; also a single string.
    observer, calibration_samples: how static activation scales are found, and on how many images (see
        `vggt_int8.calibration`).
    special_tokens: "own" gives camera and register tokens their own static scales, in groups whose layers see the
        tokens of a frame; or "shared".
    global_attention, keyframes: the default global attention of calls, as in `VGGT.forward`: one word, or one per
        layer, and K.
    vggt_1b: module -> number of children that identify a model of VGGT-1B's size, for which `Rule.layers` is checked.
    format: 2, or 1, which only has patterns: no groups, and all names are regular expressions.
    """

    name: str = "custom"
    description: str = ""
    weights: str = "int8"
    activations: str = "dynamic"
    outlier_threshold: float = 0.0
    rotation: int = 0
    smoothing: float | str = 0
    rounding: str = "nearest"
    keep: str = "fp16"
    groups: Mapping[str, str] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    observer: str = "percentile"
    calibration_samples: int = 32
    special_tokens: str = "shared"
    global_attention: str | tuple[str, ...] = "exact"
    keyframes: int | None = None
    vggt_1b: Mapping[str, int] = field(default_factory=dict)
    format: int = field(default=RECIPE_FORMAT, compare=False)

    def __post_init__(self) -> None:
        for name in (*_PATTERNS, "rules"):
            object.__setattr__(self, name, texts(name, getattr(self, name)))
        if isinstance(self.global_attention, list):
            object.__setattr__(self, "global_attention", tuple(self.global_attention))
        if not self.rules and not self.groups and not self.include and self.weights == "int8":
            object.__setattr__(self, "include", (".*",))
        self._validate()

    def _validate(self) -> None:
        text("name", self.name)
        text("description", self.description)
        if len(self.name) > _LONGEST_NAME or not self.name.isprintable():
            raise RecipeError(
                f"name is {shown(self.name)}; it must have at most {_LONGEST_NAME} printable characters", "name"
            )
        one_of("weights", self.weights, WEIGHTS)
        one_of("observer", self.observer, OBSERVERS)
        one_of("rounding", self.rounding, ROUNDINGS)
        one_of("special_tokens", self.special_tokens, SPECIAL_TOKENS)
        one_of("keep", self.keep, KEEP_DTYPES)
        integer("calibration_samples", self.calibration_samples, 1)
        if not isinstance(self.vggt_1b, Mapping) or not all(type(count) is int for count in self.vggt_1b.values()):
            raise RecipeError(f"vggt_1b is {shown(self.vggt_1b)}; it must be a table of module = number", "vggt_1b")
        check_smoothing(self.smoothing)
        self._validate_attention()
        _ = self.scheme
        self._validate_groups()
        self._validate_patterns()
        asked = self.activations_asked
        rotated = [f"groups.{word}" for word, choice in self.groups.items() if choice == ROTATED_CHOICE]
        check_rotations(self.rotation, asked, [*rotated, *(rule.where for rule in self.rules if rule.rotated)])
        if self.observer == "per_channel" and self.smoothing not in (0, "weights") and "static" in asked:
            raise RecipeError(
                f"observer = 'per_channel' smooths by itself: leave smoothing {shown(self.smoothing)} out", "smoothing"
            )
        if self.special_tokens != "shared" and "static" not in asked:
            raise RecipeError(
                f"special_tokens = {self.special_tokens!r} has no effect: no layer has static scales", "special_tokens"
            )
        if self.smoothing and not asked - {""}:
            raise RecipeError(f"smoothing {shown(self.smoothing)} has no effect: no layer is INT8", "smoothing")
        if self.rounding != "nearest" and not asked - {""}:
            raise RecipeError(f"rounding {self.rounding!r} has no effect: no layer is INT8", "rounding")
        if self.include and self.weights == "keep":
            raise RecipeError(
                "weights = 'keep' quantizes by groups and rules alone, so include has no effect: use weights = 'int8'",
                "include",
            )

    def _validate_attention(self) -> None:
        try:
            check_words(self.global_attention)
        except (ValueError, TypeError) as error:
            raise RecipeError(str(error), "global_attention") from error
        if self.keyframes is None:
            return
        integer("keyframes", self.keyframes, 1)
        if not has_keyframes(self.global_attention):
            raise RecipeError(
                f"keyframes {self.keyframes} has no effect: global_attention is {shown(self.global_attention)}",
                "keyframes",
            )

    def _validate_groups(self) -> None:
        if not isinstance(self.groups, Mapping):
            raise RecipeError(f"groups is {shown(self.groups)}; it must be a table of group = choice", "groups")
        if self.groups and self.format == PATTERNS_ALONE:
            raise RecipeError(f"groups needs format = {RECIPE_FORMAT}", "groups")
        for word, choice in self.groups.items():
            key = f"groups.{word}"
            if word in {f.name for f in fields(self)}:
                raise RecipeError(f"{word} is no group: write it above [groups]", key)
            if word not in (known := known_words()):
                raise RecipeError(f"groups names {shown(word)}, which no map has; known are {', '.join(known)}", key)
            one_of(key, choice, tuple(CHOICES))

    def _validate_patterns(self) -> None:
        for name in _PATTERNS:
            for pattern in getattr(self, name):
                regular_expression(name, pattern)
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

    @property
    def activations_asked(self) -> set[str]:
        """All activation choices in the recipe: its default (unless it keeps unnamed layers), and those of groups and
        rules.
        """
        asked = {self.activations} if self.weights == "int8" else set()
        return asked | {CHOICES[choice] for choice in self.groups.values()} | {rule.activations for rule in self.rules}

    @property
    def needs_calibration(self) -> bool:
        """Whether it needs calibration images."""
        smoothed = self.smoothing not in (0, "weights")
        return smoothed or self.rounding == "gptq" or "static" in self.activations_asked

    @property
    def scheme(self) -> Scheme:
        """The default scheme."""
        return self._scheme(self.activations)

    def rule_scheme(self, rule: Rule) -> Scheme | None:
        """The scheme that a rule asks for; None if it keeps the layer."""
        if (rule.weights or self.weights) == "keep":
            return None
        return self._scheme(rule.activations or self.activations, rule.special_tokens, rule.rotated)

    def _scheme(self, activations: str, special_tokens: int = 0, rotated: bool = False) -> Scheme:
        if activations == "none":  # whatever other layers do with their inputs
            threshold = self.outlier_threshold if self.activations == "none" else 0.0
            return Scheme("none", threshold, self.rotation if rotated else 0)
        threshold = self.outlier_threshold if activations in ("dynamic", self.activations) else 0.0
        return Scheme(activations, threshold, self.rotation, special_tokens if activations == "static" else 0)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready data for `config.json`, from which `from_dict` makes an equal recipe."""
        data = {"format": self.format, **asdict(self)}
        data["rules"] = [
            {k: v for k, v in rule.items() if v not in ("", None) and k not in ("line", "source")}
            for rule in (without_defaults(rule, ("rotated", "special_tokens"), Rule) for rule in data["rules"])
        ]
        data |= {name: list(getattr(self, name)) for name in _PATTERNS}
        data["vggt_1b"] = dict(self.vggt_1b)
        if self.format == PATTERNS_ALONE:
            del data["groups"]
        # Omitted at their defaults, so that older versions can still read such recipes.
        later = ("rotation", "smoothing", "rounding", "special_tokens", "global_attention", "keyframes")
        if not isinstance(self.global_attention, str):
            data["global_attention"] = list(self.global_attention)
        return without_defaults(data, later, type(self))

    @classmethod
    def from_dict(
        cls, data: Mapping[str, Any], *, lines: Sequence[Mapping[str, int]] = (), source: str = "recipe"
    ) -> "Recipe":
        """Build a recipe from plain data. lines: where its keys are in `source`, see `key_lines`.

        Raises `RecipeError` for an unknown key or value, and for a format newer than this package supports.
        """
        version = data.get("format", RECIPE_FORMAT)
        if type(version) is not int or version not in (PATTERNS_ALONE, RECIPE_FORMAT):
            raise RecipeError(
                f"{source}: recipe format {shown(version)}; this package reads {PATTERNS_ALONE} and {RECIPE_FORMAT}. "
                "Update vggt-int8."
            )
        rules = data.get("rules", [])
        if not isinstance(rules, list):
            raise RecipeError(f"{source}: rules must be a list of tables ([[rules]]), not {type(rules).__name__}")
        top, *of_rules = lines if len(lines) == len(rules) + 1 else [{}] * (len(rules) + 1)
        data = without_retired(data, source, top)
        known = {f.name for f in fields(cls)}
        if misplaced := [key for key in data if key not in known and key in known_words()]:
            raise RecipeError(
                f"{at(source, top.get(misplaced[0]))}: {misplaced[0]} is a group: write it under [groups]"
            )
        no_unknown_keys(data, known, source, top)
        values = dict(data)
        values["rules"] = tuple(read_rule(r, where, source) for r, where in zip(rules, of_rules, strict=True))
        try:
            recipe = cls(**values)
        except RecipeError as error:
            place = top.get(error.key, top.get(error.key.partition(".")[0]))
            raise RecipeError(f"{at(source, place)}: {error}") from error
        if data.keys() <= _WORDS:
            raise RecipeError(
                f"{source} holds no recipe: it says nothing of layers. At least weights, activations, groups, include "
                "or rules must be there"
            )
        return recipe
