"""Retired recipe keys. Attention once could multiply queries and keys as INT8 (`attention = "int8"`, in the modules
named by `attention_layers`), which was not faster on any machine; every recipe saved at that time has both keys.
"""

import warnings
from collections.abc import Mapping
from typing import Any

from vggt_int8.plain_data import shown
from vggt_int8.recipe.checks import RecipeError, at

_KEYS = ("attention", "attention_layers")
_FLOAT, _INT8 = "float", "int8"


def without_retired(data: Mapping[str, Any], source: str, lines: Mapping[str, int]) -> dict[str, Any]:
    """A recipe's plain data without retired keys that request nothing. Raises `RecipeError`, naming the line, if they
    request INT8 attention.
    """
    if (attention := data.get("attention", _FLOAT)) != _FLOAT:
        raise RecipeError(
            f"{at(source, lines.get('attention'))}: attention is {shown(attention)}, and it is computed in floating "
            "point alone: INT8 products of queries and keys were no faster anywhere. Take the line out"
        )
    return {key: value for key, value in data.items() if key not in _KEYS}


def with_float_attention(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's recipe in which INT8 attention is replaced by floating point, with a warning. It had no tensors of
    its own, and floating point is more exact.
    """
    if recipe.get("attention") != _INT8:
        return dict(recipe)
    warnings.warn(
        "the checkpoint's recipe asks for INT8 products of queries and keys, which this vggt-int8 no longer has: "
        "attention is computed in floating point, more exactly and as fast. Save the model again to be rid of this",
        stacklevel=2,
    )
    return {key: value for key, value in recipe.items() if key not in _KEYS}
