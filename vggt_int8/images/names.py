"""Names of files: their order, and how a name that is not UTF-8 stands in text that is."""

import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from os import PathLike
from pathlib import Path

from vggt_int8.encoding import one_line
from vggt_int8.listing import first_few

_NUMBER = re.compile(r"[-+]?\d+([.,]\d+)?(e[-+]?\d+)?")  # a whole stem
_DECIMAL = re.compile(r"(?<![\d.,])(\d+)[.,](\d+)(?![\d.,])")  # inside a stem; 2021.3.5 is none


def natural_key(path: Path) -> tuple[list[str | int], str]:
    """Digits compare as numbers, letters without case; the plain path decides ties."""
    parts = re.split(r"(\d+)", str(path).casefold())
    # Text and digits alternate, so entries at the same place have the same type.
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], str(path)


def order_warning(paths: Sequence[Path]) -> str | None:
    """A sentence if names in natural order do not come in the order of their values; None if both orders agree.

    `1305031102.2` is counted as (1305031102, 2) and comes before `1305031102.175304`, but is the later time; `-10`
    comes after `-5`. Only names that differ in nothing but numbers are compared.
    """
    series: dict[tuple[Path, str], list[tuple[Path, tuple[float, ...]]]] = defaultdict(list)
    for path in paths:
        text, values = _values(path.stem)
        series[path.parent, text + path.suffix.lower()].append((path, values))
    for (folder, _), members in series.items():
        for (first, low), (second, high) in pairwise(members):
            if low > high:
                return (
                    f"names in {folder} are read in the order of their whole numbers, {first.name} before "
                    f"{second.name}, but their values order them the other way: if that is meant, pass the files "
                    "as a list, which keeps its order, or name them with the same number of digits"
                )
    return None


def _values(stem: str) -> tuple[str, tuple[float, ...]]:
    """A stem as text without its numbers, and those numbers with sign and fraction."""
    if _NUMBER.fullmatch(stem.lower()):
        return "", (float(stem.replace(",", ".")),)
    values: list[float] = []

    def take(match: re.Match[str]) -> str:
        values.append(float(match[0].replace(",", ".")))
        return "\0"

    text = re.sub(rf"{_DECIMAL.pattern}|\d+", take, stem.casefold(), flags=re.ASCII)
    return text, tuple(values)


def some_names(names: Sequence[str], shown: int = 5) -> str:
    """The first names, and how many more there are."""
    return one_line(first_few(names, shown))


def portable_name(name: str | PathLike[str]) -> str:
    """A file's name as valid Unicode: itself, or where it is not UTF-8 a `file://` URI, which `find_images` reads.

    `photos/caf\\xe9.jpg` (Latin-1) becomes `file:///home/me/photos/caf%E9.jpg`: the bytes are all there.
    """
    text = str(name)
    return Path(text).absolute().as_uri() if re.search("[\udc80-\udcff]", text) else text


def portable_stem(name: str | PathLike[str]) -> str:
    """The stem of a file's name, at most 50 characters; bytes that are not UTF-8 as %E9."""
    stem = Path(name).stem[:50]
    return re.sub("[\udc80-\udcff]", lambda match: f"%{ord(match[0]) - 0xDC00:02X}", stem)
