"""Which network a checkpoint is of, and which heads it has: from its config.json, else from the names of its
tensors.
"""

import warnings
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from vggt_int8.listing import first_few
from vggt_int8.model.config import VGGTConfig
from vggt_int8.model.configs import CONFIGS, AnyConfig, network_name
from vggt_int8.model.network_config import NetworkConfig
from vggt_int8.saves.errors import CheckpointError


def config_class(data: Any) -> type[AnyConfig]:
    """The config class for the contents of a config.json, by `model_type`; VGGT's by default."""
    found = data.get("model_type") if isinstance(data, Mapping) else None
    return CONFIGS.get(found, VGGTConfig) if isinstance(found, str) else VGGTConfig


def config_class_of_names(names: Iterable[str]) -> type[AnyConfig]:
    """The config class for the plain names of a network's tensors; VGGT's by default."""
    return next((kind for kind in _named_by(names) if kind is not VGGTConfig), VGGTConfig)


def _named_by(names: Iterable[str]) -> list[type[AnyConfig]]:
    """The kinds of network of which these tensors have a name that no other kind has."""
    names = list(names)
    return [kind for kind in CONFIGS.values() if any(name.startswith(kind.own_names) for name in names)]


def hint_of_model_type(data: Any, kind: type[NetworkConfig]) -> str:
    """Advice for a config.json of another network than `kind`'s; empty if it is of none of ours."""
    found = config_class(data)
    said = isinstance(data, Mapping) and data.get("model_type") == found.model_type
    return f": {_way_out(found)}" if said and found is not kind else ""


def check_names(names: Collection[str], source: str, kind: type[NetworkConfig]) -> None:
    """Raise `CheckpointError` if a file's tensors have names that only another network than `kind`'s has."""
    found = _named_by(names)
    if len(found) == 1 and kind not in found:
        (other,) = found
        raise CheckpointError(f"{source} holds a {other.kind}, not a {kind.kind}: {_way_out(other)}")


def _way_out(found: type[AnyConfig]) -> str:
    return f"load it with {network_name(found)}Int8"


def heads_found(
    names: Iterable[str], source: str, kind: type[NetworkConfig], asked: Mapping[str, Any]
) -> dict[str, bool]:
    """Config field -> whether a file with tensors of these names has that head; warns of missing heads that a full
    checkpoint has. asked: fields that the caller sets.
    """
    parts = {name.split(".", 1)[0] for name in names}
    if not parts & {*kind.head_fields, "aggregator"}:  # of something else, which loading says
        return {}
    found = {field: part in parts for part, field in kind.head_fields.items()}
    gone = [field for field, there in found.items() if not there and getattr(kind, field) and field not in asked]
    if gone:
        heads = first_few([field.removeprefix("enable_") for field in gone])
        warnings.warn(f"{source} has no weights of these heads: {heads}; it is loaded without", stacklevel=2)
    return found
