"""The configs of networks that can be trained: which one the `model_type` of a run's [model] means, how two differ."""

from typing import Any

import torch

from vggt_int8.model.config import VGGTConfig
from vggt_int8.model.configs import CONFIGS, AnyConfig
from vggt_int8.model.families import AnyNetwork, network_class
from vggt_int8.model.network_config import NetworkConfig
from vggt_int8.plain_data import shown


def config_class(model_type: Any) -> type[AnyConfig]:
    """Raises ValueError, naming those that there are, for another kind of network."""
    if not isinstance(model_type, str) or model_type not in CONFIGS:
        raise ValueError(f"[model] has model_type {shown(model_type)}; it can be {', '.join(CONFIGS)}")
    return CONFIGS[model_type]


def trained_network(source: str) -> AnyNetwork:
    """The network of a model's folder, a Hub id or "embedded", of whichever kind it is, in fp32.

    Raises as `from_pretrained` does, and ValueError if it is of no kind that can be trained.
    """
    table, _ = VGGTConfig.get_config_dict(source)
    config = config_class(table.get("model_type", VGGTConfig.model_type)).from_pretrained(source)
    network: AnyNetwork = network_class(config).from_pretrained(source, dtype=torch.float32)
    return network


def first_difference(found: NetworkConfig, wanted: NetworkConfig) -> tuple[str, Any, Any] | None:
    """The first field by which two networks differ, and its two values; None if they are the same."""
    if found.model_type != wanted.model_type:
        return "model_type", found.model_type, wanted.model_type
    both = ((key, getattr(found, key), getattr(wanted, key)) for key in sorted(type(wanted).__annotations__))
    return next((field for field in both if field[1] != field[2]), None)
