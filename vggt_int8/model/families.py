"""The network families: the plain class of each config, and access to parts that correspond under different names."""

from collections.abc import Iterable

from torch import nn

from vggt_int8.model.dpt_head import Pyramid
from vggt_int8.model.network_config import NetworkConfig
from vggt_int8.model.omega.config import VGGTOmegaConfig
from vggt_int8.model.omega.network import VGGTOmega
from vggt_int8.model.vggt import VGGT

AnyNetwork = VGGT | VGGTOmega


def network_class(config: NetworkConfig) -> type[AnyNetwork]:
    return VGGTOmega if isinstance(config, VGGTOmegaConfig) else VGGT


def dense_heads(network: AnyNetwork) -> list[Pyramid]:
    """The enabled heads that predict a value for each pixel."""
    heads = [network.dense_head] if isinstance(network, VGGTOmega) else [network.depth_head, network.point_head]
    return [head for head in heads if head is not None]


def blocks_between_frames(network: AnyNetwork) -> Iterable[nn.Module]:
    """The aggregator blocks in which frames attend to each other."""
    if isinstance(network, VGGTOmega):
        return network.aggregator.inter_frame_blocks
    return network.aggregator.global_blocks


def pose_output(network: AnyNetwork) -> nn.Linear | None:
    """The linear that writes the poses or the pose updates."""
    if network.camera_head is None:
        return None
    return network.camera_head.pose_output if isinstance(network, VGGTOmega) else network.camera_head.pose_branch.fc2
