"""Applies a recipe's choice of global attention to a network."""

from torch import nn

from vggt_int8.global_attention import GlobalAttention
from vggt_int8.recipe import Recipe, RecipeError


def attention_by(recipe: Recipe, model: nn.Module) -> GlobalAttention | None:
    """The default attention that the recipe sets for calls; None if the network has no global attention and the recipe
    sets none.

    Raises `RecipeError` if the network does not support the recipe's choice.
    """
    own = getattr(model, "default_attention", None)
    if not isinstance(own, GlobalAttention):
        if recipe.global_attention == "exact":
            return None
        raise RecipeError(
            f"recipe {recipe.name!r} chooses what global blocks look at, which only this package's own networks know, "
            f"not a {type(model).__module__}.{type(model).__name__}: leave global_attention out, or use VGGTInt8",
            "global_attention",
        )
    try:
        return GlobalAttention.of(len(own.layers), recipe.global_attention, recipe.keyframes)
    except ValueError as error:
        raise RecipeError(f"recipe {recipe.name!r}: {error}", "global_attention") from error


def set_attention(recipe: Recipe, model: nn.Module) -> None:
    """Set the model's default attention as `attention_by` returns it."""
    if (chosen := attention_by(recipe, model)) is not None:
        model.default_attention = chosen  # type: ignore[assignment]  # a property, not a module
