"""Recipes with static scales in tests that go over all recipes: the images that they are calibrated with."""

from typing import Any

from torch import Tensor

from vggt_int8 import load_recipe


def calibration_for(recipe: str | None, images: Tensor) -> dict[str, Any]:
    """Keyword arguments of `quantize` and `from_pretrained` beside `recipe`: `images` where it needs any."""
    needed = recipe is not None and load_recipe(recipe).needs_calibration
    return {"calibration": images} if needed else {}
