"""Loads recipes from files: shipped ones by name, others by path."""

import tomllib
from pathlib import Path

from vggt_int8.recipe.checks import RecipeError
from vggt_int8.recipe.lines import key_lines
from vggt_int8.recipe.recipe import Recipe

RECIPE_FOLDER = Path(__file__).parent.parent / "recipes"
_MOST_CHARACTERS = 1_000_000  # of a recipe's file


def load_recipe(recipe: "str | Path | Recipe") -> Recipe:
    """A recipe from a shipped name ("int8_dynamic") or the path of a TOML file; a `Recipe` is returned as it is.

    Raises `RecipeError` for an unknown name (listing those that exist), an unreadable file, and unknown keys or values.
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
    return Recipe.from_dict({"name": path.stem, **data}, lines=key_lines(text), source=str(path))


def _recipe_text(path: Path) -> str:
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe would be waited for, a device has no end
            raise RecipeError(f"cannot read the recipe {path}: it is no file")
        with path.open(encoding="utf-8") as file:
            text = file.read(_MOST_CHARACTERS + 1)
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not valid TOML: {error}") from error
    if len(text) > _MOST_CHARACTERS:
        raise RecipeError(f"{path} is no recipe: it has more than {_MOST_CHARACTERS} characters")
    return text


def available_recipes() -> list[str]:
    """Names of the shipped recipes, sorted."""
    return sorted(path.stem for path in RECIPE_FOLDER.glob("*.toml"))
