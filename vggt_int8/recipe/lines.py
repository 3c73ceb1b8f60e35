"""Line numbers of the keys in a TOML file, which Python's parser does not report, for error messages."""

import re

_RULES = re.compile(r"\s*\[\[\s*rules\s*\]\]")
_TABLE = re.compile(r"\s*\[+\s*([^\]]+?)\s*\]")
_KEY = re.compile(r"\s*((?:[\"']?[\w-]+[\"']?\s*\.\s*)*[\"']?[\w-]+[\"']?)\s*=")


def key_lines(content: str) -> list[dict[str, int]]:
    """Key -> line for the keys outside [[rules]], then for each [[rules]] table, whose own line is under "".

    A key in a table is "table.key", and the table's own line is under "table".
    """
    top: dict[str, int] = {}
    found, keys, table = [top], top, ""
    for number, line in enumerate(content.splitlines(), 1):
        if _RULES.match(line):
            keys, table = {"": number}, ""
            found.append(keys)
        elif head := _TABLE.match(line):
            keys, table = top, f"{_plain(head[1])}."
            parts = table.split(".")[:-1]
            for depth in range(len(parts)):
                top.setdefault(".".join(parts[: depth + 1]), number)
        elif key := _KEY.match(line):
            keys.setdefault(table + _plain(key[1]), number)
    return found


def _plain(key: str) -> str:
    return re.sub(r"[\"'\s]", "", key)
