"""What a checkpoint was made from: kept in config.json with the weights, beside their licence, for the card that goes
with them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vggt_int8.embedded import EMBEDDED_MODELS, embedded_name

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Base:
    """id: of the Hub, or an embedded model's name; None of what lay on a disk. file: name of the file of weights, where
    it was one of a folder or repository that has no config.json, or was named itself.
    """

    id: str | None = None
    file: str | None = None

    def to_dict(self) -> dict[str, str]:
        """For config.json: what is known."""
        return {key: value for key, value in vars(self).items() if value is not None}


def base_in(config: Any) -> Base | None:
    """What the `base_model` of a config, or of what a config.json holds, says; None where that is nothing."""
    value = config.get("base_model") if isinstance(config, Mapping) else getattr(config, "base_model", None)
    if not isinstance(value, Mapping):
        return None
    id, file = value.get("id"), value.get("file")
    known = isinstance(id, str) and (id in EMBEDDED_MODELS or is_hub_id(id))
    named = isinstance(file, str) and re.fullmatch(r"[^/\s`|<>]{1,255}", file) is not None  # it is printed in cards
    return Base(id if known else None, file if named else None) if known or named else None


def base_of(source: str, file: str | None) -> Base | None:
    """Of a resolved source and, where the weights are one file, its path; None of a folder of somebody's disk."""
    if (name := source if source in EMBEDDED_MODELS else embedded_name(source)) is not None:
        return Base(name)
    of_the_hub = is_hub_id(source) and not Path(source).exists()
    return Base(source if of_the_hub else None, file and Path(file).name) if of_the_hub or file else None


def is_hub_id(name: str) -> bool:
    return _HUB_ID.fullmatch(name) is not None
