"""Lists inside messages: the first few entries, and how many more there are, so that nothing is cut silently."""

from collections.abc import Callable, Sequence
from typing import TypeVar

Entry = TypeVar("Entry")


def first_few(
    entries: Sequence[Entry], most: int = 3, *, spell: Callable[[Entry], str] = str, between: str = ", "
) -> str:
    """ "a, b, c and 4 more". spell: formats an entry; called only for those shown."""
    more = f" and {len(entries) - most} more" if len(entries) > most else ""
    return between.join(map(spell, entries[:most])) + more
