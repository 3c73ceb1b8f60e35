"""Plain data from outside (JSON, TOML, keyword arguments): nesting depth, and display in messages.

An invalid value may have megabytes or thousands of levels, for which `repr` and `copy.deepcopy` fail themselves.
"""

import math
from collections.abc import Mapping
from numbers import Integral
from typing import Any

DEEPEST = 32  # levels of lists and tables; a config.json of ours has five


def shown(value: Any, most: int = 80) -> str:
    """A value for a message: its `repr` on one line, truncated after `most` characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python writes no integer of more than 4300 digits
        text = f"a number of {value.bit_length()} bits" if isinstance(value, int) else f"a {type(value).__name__}"
    text = " ".join(text.split()) if "\n" in text else text
    return text if len(text) <= most else text[: most - 3] + "..."


def is_integer(value: Any) -> bool:
    """Python's and NumPy's integers, but not True and False, although they count as 1 and 0."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_integer(name: str, value: Any, otherwise: str = "") -> None:
    """Raise TypeError unless the value is an integer."""
    if not is_integer(value):
        raise TypeError(f"{name} is {shown(value)}; it must be an integer{otherwise}")


def too_deep(value: Any) -> bool:
    """Whether lists and tables are nested more than `DEEPEST` levels."""
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return False
    return True


def finite(value: Any) -> Any:
    """The same data with None for NaN and infinities, which JSON lacks, and lists for tuples."""
    if isinstance(value, Mapping):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def first_difference(found: Any, wanted: Mapping[str, Any]) -> str:
    """ "model.value was 'a' and is 'b'", for the first entry that differs."""
    if not isinstance(found, dict):
        return f"it is {shown(found)}"
    for key in [*wanted, *found]:
        old, new = found.get(key), wanted.get(key)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, Mapping):
            return f"{key}.{first_difference(old, new)}"
        return f"{key} was {shown(old)} and is {shown(new)}"
    return "it differs"


def _inside(value: Any) -> list[Any]:
    """The lists and tables in a list or table."""
    entries = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [entry for entry in entries if isinstance(entry, Mapping | list | tuple)]


def flat(table: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Keys and values for display; nested tables are flattened: "data kind", "data images"."""
    rows: list[tuple[str, Any]] = []
    for key, value in table.items():
        rows += [(f"{key} {k}", v) for k, v in value.items()] if isinstance(value, Mapping) else [(key, value)]
    return rows
