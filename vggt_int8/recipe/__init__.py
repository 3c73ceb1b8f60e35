"""Recipes: which layers become INT8, and how. Pure data, separated into maps and recipes.

A map (`family.py`, `vggt_int8/families/*.toml`) assigns the layer names of a network family to groups: encoder, camera
head, outputs, … A recipe chooses by group, in about ten lines, and applies to every family that has these groups:

    Recipe(weights="int8", activations="dynamic", groups={"camera_head": "weight_only", "outputs": "keep"})

For any other module, and for exceptions, a recipe uses patterns on module names: regular expressions that must match
the whole name (like `re.fullmatch`, but in linear time; `vggt_int8.patterns` says which syntax is supported).

    Recipe(weights="int8", activations="dynamic", include=[r".*\\.mlp\\..*"], exclude=[r"head\\..*"])

Layers are `nn.Linear`, `nn.Conv2d` and `nn.ConvTranspose2d` modules. A layer is decided by the first of these that
applies: `exclude` keeps it; the first matching rule of `rules`; the choice in `groups` for its group; `include` gives
it the recipe's default scheme. By default, `include` is every group that the recipe does not name, or every layer in a
recipe without groups and rules, or nothing with `weights = "keep"`. All other layers are kept.

`expand` rewrites groups as patterns for one family, which is the form that checkpoints store.
"""

from vggt_int8.recipe.checks import RecipeError
from vggt_int8.recipe.expand import expand, names_groups
from vggt_int8.recipe.family import Family, Group, Seams, families, find_family, known_words
from vggt_int8.recipe.load import RECIPE_FOLDER, available_recipes, load_recipe
from vggt_int8.recipe.recipe import RECIPE_FORMAT, Recipe
from vggt_int8.recipe.retired import with_float_attention
from vggt_int8.recipe.rule import Rule
from vggt_int8.recipe.scheme import Scheme

__all__ = [
    "RECIPE_FOLDER",
    "RECIPE_FORMAT",
    "Family",
    "Group",
    "Recipe",
    "RecipeError",
    "Rule",
    "Scheme",
    "Seams",
    "available_recipes",
    "expand",
    "families",
    "find_family",
    "known_words",
    "load_recipe",
    "names_groups",
    "with_float_attention",
]
