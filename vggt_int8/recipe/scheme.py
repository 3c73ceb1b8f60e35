"""Schemes: how one quantized layer computes, and the words that recipes use for it."""

import math
from collections.abc import Collection
from dataclasses import dataclass

from vggt_int8.plain_data import shown
from vggt_int8.recipe.checks import RecipeError, integer, one_of

WEIGHTS = ("int8", "keep")
ACTIVATIONS = ("none", "dynamic", "static")
# The choices of a recipe for a group of layers: floats, or int8 weights with these activations.
CHOICES = {
    "keep": "",
    "weight_only": "none",
    "weight_only_rotated": "none",
    "dynamic": "dynamic",
    "static": "static",
}
ROTATED_CHOICE = "weight_only_rotated"  # of the others, those with INT8 activations are rotated if the recipe rotates
OBSERVERS = ("minmax", "percentile", "histogram", "mse", "per_channel")
ROUNDINGS = ("nearest", "gptq")
SPECIAL_TOKENS = ("own", "shared")
KEEP_DTYPES = ("fp16",)
ROTATIONS = (2, 4, 8, 16, 32, 64, 128, 256)
SMOOTHINGS = ("weights", "search")  # or a strength


@dataclass(frozen=True)
class Scheme:
    """How one quantized linear computes. Weights are int8 per output channel in every scheme.

    activations: "none" (W8A16: weight-only), "dynamic" (W8A8: one scale per token, computed at run time) or "static"
        (W8A8: one scale per layer, or two, from calibration).
    outlier_threshold: 0, or the LLM.int8() threshold: input columns that reach it stay in floating point.
    rotation: 0, or the largest group size, a power of two, in which inputs and weights are rotated before rounding
        (`rotation_of` gives a layer's actual size).
    special_tokens: 0, or the number of tokens at the beginning of each frame that have their own static scale.
    """

    activations: str = "dynamic"
    outlier_threshold: float = 0.0
    rotation: int = 0
    special_tokens: int = 0

    def __post_init__(self) -> None:
        one_of("activations", self.activations, ACTIVATIONS)
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
        check_rotation(self.rotation)
        if self.rotation and threshold:
            raise RecipeError(
                f"rotation {self.rotation} would spread the columns that outlier_threshold {threshold} parts",
                "rotation",
            )
        integer("special_tokens", self.special_tokens, 0)
        if self.special_tokens and self.activations != "static":
            raise RecipeError(
                f"special_tokens {self.special_tokens} is for static scales, not for activations = "
                f"{self.activations!r}",
                "special_tokens",
            )

    @property
    def input_scales(self) -> int:
        """Number of static scales of a layer."""
        return (2 if self.special_tokens else 1) if self.activations == "static" else 0

    def rotation_of(self, in_features: int) -> int:
        """Group size in which a layer's inputs are rotated, a divisor of `in_features`; 0 for no rotation."""
        group = math.gcd(in_features, self.rotation) if self.rotation else 0
        return group if group > 1 else 0

    @property
    def label(self) -> str:
        """Short name for tables, such as "W8A16", "W8A8 dynamic", "W8A8 static rotated" or "LLM.int8()"."""
        if self.outlier_threshold:
            return "LLM.int8()"
        kind = "W8A16" if self.activations == "none" else f"W8A8 {self.activations}"
        return kind + " rotated" * bool(self.rotation)


def check_rotation(rotation: object) -> None:
    """Raise `RecipeError` unless it is 0 or a power of two that the kernels support."""
    if type(rotation) is not int or not (rotation == 0 or rotation in ROTATIONS):
        raise RecipeError(
            f"rotation is {shown(rotation)}; it must be 0 (off) or one of {', '.join(map(str, ROTATIONS))}", "rotation"
        )


def check_smoothing(smoothing: object) -> None:
    """Raise `RecipeError` unless it is a valid value for smoothing."""
    strength = type(smoothing) in (int, float) and 0 <= smoothing <= 1  # type: ignore[operator]
    if not (strength or (isinstance(smoothing, str) and smoothing in SMOOTHINGS)):
        raise RecipeError(
            f"smoothing is {shown(smoothing)}; it must be 0 (off), a strength of up to 1, 'search' or 'weights'",
            "smoothing",
        )


def check_rotations(rotation: object, asked: Collection[str], rotated: Collection[str]) -> None:
    """Raise `RecipeError` unless a recipe's `rotation` applies to some of its layers and to all that request it.

    asked: all activation choices of the recipe.
    rotated: its entries that request weight-only layers with rotated inputs.
    """
    check_rotation(rotation)
    if rotated and not rotation:
        entry = next(iter(rotated))
        raise RecipeError(f"{entry} asks for rotated inputs, but rotation is 0: set it, to 256 for example", entry)
    if rotation and not rotated and not {"dynamic", "static"} & set(asked):
        raise RecipeError(
            f"rotation {rotation} has no effect: no layer has INT8 activations, and no group is {ROTATED_CHOICE!r}",
            "rotation",
        )
