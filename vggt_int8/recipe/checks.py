"""The error class of recipes, and checks of single values that raise it."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from vggt_int8.patterns import PatternError, compile_pattern
from vggt_int8.plain_data import shown


class RecipeError(ValueError):
    """A recipe that cannot be read, contradicts itself, or does not fit the model. The message names the line.

    key: the recipe's entry at fault, if there is one ("weights", "groups.encoder"), so that a file's reader can add its
        line.
    """

    def __init__(self, message: str, key: str = "") -> None:
        super().__init__(message)
        self.key = key


def text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise RecipeError(f"{name} is {shown(value)}; it must be text", name)


def one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise RecipeError(f"{name} is {shown(value)}; choose one of {', '.join(repr(a) for a in allowed if a)}", name)


def integer(name: str, value: Any, least: int) -> None:
    if type(value) is not int or value < least:
        raise RecipeError(f"{name} is {shown(value)}; it must be an integer >= {least}", name)


def regular_expression(name: str, pattern: Any) -> None:
    try:
        compile_pattern(pattern)
    except (PatternError, TypeError) as error:  # the latter: a list or table, which no cache takes
        raise RecipeError(f"{name}: {shown(pattern)} is no regular expression here: {error}", name) from error


def texts(name: str, value: Any) -> tuple[Any, ...]:
    """A list as a tuple; a single text is a list of one."""
    if not isinstance(value, Iterable):
        raise RecipeError(f"{name} is {shown(value)}; it must be a list", name)
    return (value,) if isinstance(value, str) else tuple(value)


def at(source: str, line: int | None) -> str:
    """A location in a file, for messages."""
    return f"{source}, line {line}" if line else source


def no_unknown_keys(data: Mapping[str, Any], known: Collection[str], source: str, lines: Mapping[str, int]) -> None:
    for key in data:
        if key not in known:
            where = at(source, lines.get(key, lines.get("")))
            raise RecipeError(f"{where}: unknown key {shown(key)}; known are {', '.join(sorted(known))}")
