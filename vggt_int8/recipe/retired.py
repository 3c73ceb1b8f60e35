"""Keys that recipes had once. Attention could multiply queries and keys as INT8 (`attention = "int8"`, of the modules
that `attention_layers` named), which no machine gained from; every recipe that was saved then holds both keys.
"""

import warnings
from collections.abc import Mapping
from typing import Any

from vggt_int8.plain_data import shown
from vggt_int8.recipe.checks import RecipeError, at

_KEYS = ("attention", "attention_layers")
_FLOAT, _INT8 = "float", "int8"


def without_retired(data: Mapping[str, Any], source: str, lines: Mapping[str, int]) -> dict[str, Any]:
    """A recipe's plain data less such keys where they asked for nothing. Raises `RecipeError`, naming the line, where
    attention is to be anything but floats."""
    if (attention := data.get("attention", _FLOAT)) != _FLOAT:
        raise RecipeError(
            f"{at(source, lines.get('attention'))}: attention is {shown(attention)}, and it is computed in floating "
            "point alone: INT8 products of queries and keys were no faster anywhere. Take the line out"
        )
    return {key: value for key, value in data.items() if key not in _KEYS}


def with_float_attention(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's recipe, in which INT8 attention is taken for floats, with a warning: it had no tensors of its own,
    and floats are the more exact."""
    if recipe.get("attention") != _INT8:
        return dict(recipe)
    warnings.warn(
        "the checkpoint's recipe asks for INT8 products of queries and keys, which this vggt-int8 no longer has: "
        "attention is computed in floating point, more exactly and as fast. Save the model again to be rid of this",
        stacklevel=2,
    )
    return {key: value for key, value in recipe.items() if key not in _KEYS}
