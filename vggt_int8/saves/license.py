"""The licence of weights, as their source states it: in its model card, or in the header of a safetensors file.

Quantization does not change a licence, so the stated one goes into config.json, and into the card of derived weights.
If no source states one, it is unknown: nothing is inferred from names and shapes, which checkpoints under different
licences share.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.repocard import metadata_load

from vggt_int8.saves.plain_files import opened

CARD = "README.md"
OTHER = "other"  # the Hub's word for a licence that has no identifier there
_LARGEST_CARD = 4 * 1024 * 1024  # bytes


@dataclass(frozen=True)
class License:
    """id: as the Hub spells it, such as "cc-by-nc-4.0", or "other", which `name` and `link` say more of. stated_by: the
    file that it was found in, without its folder, for people.
    """

    id: str
    name: str | None = None
    link: str | None = None
    stated_by: str | None = None

    def to_dict(self) -> dict[str, str]:
        """For config.json: what is known."""
        return {key: value for key, value in vars(self).items() if value is not None}

    def __str__(self) -> str:
        named = self.name if self.id == OTHER and self.name else self.id
        details = ", ".join(word for word in (self.link, self.stated_by) if word)
        return f"{named} ({details})" if details else named


def license_in(config: Any) -> License | None:
    """What the `license` of a config, or of what a config.json holds, says."""
    value = config.get("license") if isinstance(config, Mapping) else getattr(config, "license", None)
    if isinstance(value, str):
        value = {"id": value}
    if not isinstance(value, Mapping) or not isinstance(value.get("id"), str) or not value["id"]:
        return None
    words = {key: value.get(key) for key in ("name", "link", "stated_by")}
    return License(value["id"], **{key: word for key, word in words.items() if isinstance(word, str)})


def find_license(source: str, options: Mapping[str, Any], file: str | None = None) -> License | None:
    """The licence that a folder, a file or a model of the Hub states; None if it states none.

    options: keywords of `from_pretrained`, for the Hub and for a subfolder. file: the weights that are meant, if they
    are one file and its path is known. A card is looked at first, then a file's header. Warns of an unreadable card.
    """
    path = Path(source)
    inside = path / (options.get("subfolder") or "")
    if not path.exists():
        cards = _on_the_hub(source, options)
    else:
        beside = dict.fromkeys([path, inside] if path.is_dir() else [path.parent])
        cards = [(folder / CARD, CARD) for folder in beside if (folder / CARD).is_file()]
    for card, named in cards:
        if (found := _in_card(card, named, source)) is not None:
            return found
    if file is None and path.is_dir():
        file = next((str(found) for found in sorted(inside.glob("*.safetensors"))), None)
    file = file or (source if path.is_file() else None)
    return _in_header(Path(file)) if file is not None and file.endswith(".safetensors") else None


def _on_the_hub(source: str, options: Mapping[str, Any]) -> list[tuple[Path, str]]:
    """The card of a repository, in the cache now, and its name for people; nothing where there is none."""
    asked = {key: options[key] for key in ("cache_dir", "local_files_only", "token", "revision") if key in options}
    try:
        return [(Path(hf_hub_download(source, CARD, **asked)), f"{CARD} of {source}")]
    except EntryNotFoundError:  # also where the Hub is not to be asked, and the card is not in the cache
        return []


def _in_card(card: Path, named: str, source: str) -> License | None:
    try:
        if card.stat().st_size > _LARGEST_CARD:
            raise ValueError(f"it has more than {_LARGEST_CARD} bytes")
        table = metadata_load(card)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        warnings.warn(f"the licence that {card} may state is not known: {reason:.200}", stacklevel=4)
        return None
    found = _stated(table or {}, "license", named)
    if found is None or found.link is None or "://" in found.link or named == CARD:
        return found
    return replace(found, link=f"https://huggingface.co/{source}/blob/main/{found.link}")  # a file beside the card


def _in_header(path: Path) -> License | None:
    """By the keys of a card, or by that of the "modelspec" convention."""
    with opened(path) as file:
        table = file.metadata() or {}
    return _stated(table, "license", path.name) or _stated(table, "modelspec.license", path.name)


def _stated(table: Mapping[str, Any], key: str, by: str) -> License | None:
    value = table.get(key)
    if isinstance(value, list) and value and all(isinstance(entry, str) for entry in value):
        return License(OTHER, " and ".join(value), None, by)
    if not isinstance(value, str) or not value.strip():
        return None
    name, link = (table.get(each) for each in ("license_name", "license_link"))
    link = link if isinstance(link, str) else None
    return License(value.strip(), name if isinstance(name, str) else None, link, by)
