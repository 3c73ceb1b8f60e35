"""The networks that can be trained: the config and the model class behind the `model_type` of a run's [model]."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from vggt_int8.model.config import VGGTConfig
from vggt_int8.model.dpt_head import Pyramid
from vggt_int8.model.network_config import NetworkConfig
from vggt_int8.model.omega.config import VGGTOmegaConfig
from vggt_int8.model.omega.network import VGGTOmega
from vggt_int8.model.vggt import VGGT
from vggt_int8.plain_data import shown

TrainableConfig = VGGTConfig | VGGTOmegaConfig
Trainable = VGGT | VGGTOmega
CONFIGS: dict[str, type[TrainableConfig]] = {kind.model_type: kind for kind in (VGGTConfig, VGGTOmegaConfig)}


def config_class(model_type: Any) -> type[TrainableConfig]:
    """Raises ValueError, naming those that there are, for another kind of network."""
    if not isinstance(model_type, str) or model_type not in CONFIGS:
        raise ValueError(f"[model] has model_type {shown(model_type)}; it can be {', '.join(CONFIGS)}")
    return CONFIGS[model_type]


def network_class(config: NetworkConfig) -> type[Trainable]:
    return VGGTOmega if isinstance(config, VGGTOmegaConfig) else VGGT


def dense_heads(network: Trainable) -> list[Pyramid]:
    """The heads that predict a value for each pixel, those that the network has."""
    heads = [network.dense_head] if isinstance(network, VGGTOmega) else [network.depth_head, network.point_head]
    return [head for head in heads if head is not None]


def blocks_between_frames(network: Trainable) -> Iterable[nn.Module]:
    """The blocks of the aggregator in which frames see one another."""
    if isinstance(network, VGGTOmega):
        return network.aggregator.inter_frame_blocks
    return network.aggregator.global_blocks


def first_difference(found: NetworkConfig, wanted: NetworkConfig) -> tuple[str, Any, Any] | None:
    """The first field by which two networks differ, and its two values; None if they are the same."""
    if found.model_type != wanted.model_type:
        return "model_type", found.model_type, wanted.model_type
    both = ((key, getattr(found, key), getattr(wanted, key)) for key in sorted(type(wanted).__annotations__))
    return next((field for field in both if field[1] != field[2]), None)
