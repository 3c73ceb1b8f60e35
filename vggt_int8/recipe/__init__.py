"""Recipes: which layers become INT8, and how. Data only, in two kinds that are kept apart.

A map (`family.py`, `vggt_int8/families/*.toml`) knows the names of a family's layers and puts them into groups:
encoder, camera head, outputs, … A recipe chooses for groups, in ten lines that fit every family which has them:

    Recipe(weights="int8", activations="dynamic", groups={"camera_head": "weight_only", "outputs": "keep"})

For any other module, and for exceptions, a recipe has patterns on the names of modules: regular expressions that must
match the whole name (as `re.fullmatch`, but in linear time: see `vggt_int8.patterns` for what that leaves out).

    Recipe(weights="int8", activations="dynamic", include=[r".*\\.mlp\\..*"], exclude=[r"head\\..*"])

Layers are `nn.Linear`, `nn.Conv2d` and `nn.ConvTranspose2d` modules. What decides one, in this order: `exclude` keeps
it; the first of `rules` whose pattern fits; what `groups` says of its group; `include` gives it the recipe's own
scheme. Left out, `include` is every group that the recipe does not name, and in a recipe without groups and rules
every layer; with `weights = "keep"` it is nothing. The rest is kept.

`expand` writes the groups out as patterns, for one family: that is what a checkpoint holds.
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
