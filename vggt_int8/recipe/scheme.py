"""Schemes: how one quantized layer computes, and the words by which recipes say so."""

from dataclasses import dataclass
from typing import ClassVar

from vggt_int8.plain_data import shown
from vggt_int8.recipe.checks import RecipeError, one_of

WEIGHTS = ("int8", "keep")
ACTIVATIONS = ("none", "dynamic", "static")
# What a recipe may choose for a group of layers: floats, or int8 weights with these activations.
CHOICES = {"keep": "", "weight_only": "none", "dynamic": "dynamic", "static": "static"}
ATTENTIONS = ("float", "int8")
OBSERVERS = ("minmax", "histogram", "per_channel")
KEEP_DTYPES = ("fp16",)


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
