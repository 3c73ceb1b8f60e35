"""The shape of a VGGT-Ω network; the defaults are those of the public checkpoint for images of 512 pixels."""

from dataclasses import field
from types import MappingProxyType
from typing import ClassVar

from huggingface_hub.dataclasses import strict

from vggt_int8.model.network_config import NetworkConfig, with_plain_errors
from vggt_int8.model.size import block_parameters, fusion_parameters
from vggt_int8.plain_data import shown

# Constants of the architecture.
STORAGE_TOKENS = 4  # of the encoder, beside its class token
TEXT_BLOCKS, TEXT_HEADS = 4, 16
MAP_STRIDE = 4  # image pixels per pixel of the dense head's maps, before the pixel shuffle: patch_size / 4

# field -> the largest plausible value.
_MOST = {
    "img_size": 16384,
    "patch_size": 512,
    "embed_dim": 32768,
    "num_register_tokens": 4096,
    "encoder_depth": 256,
    "depth": 256,
    "camera_depth": 64,
    "encoder_num_heads": 1024,
    "num_heads": 1024,
    "camera_num_heads": 1024,
    "mlp_ratio": 64,
    "dpt_features": 16384,
}


@with_plain_errors
@strict
class VGGTOmegaConfig(NetworkConfig):
    """Sizes and switches of a VGGT-Ω network. Invalid values raise ValueError, naming the field and the value.

    img_size: resolution to which images are resized (see `vggt_int8.images`); any whole number of patches works.
    patch_size: of the image encoder; depth is predicted in blocks of `patch_size / 4` by `patch_size / 4` pixels.
    embed_dim: token width C. The heads read both halves of a layer concatenated, 2C wide.
    encoder_depth, depth: blocks of the image encoder; (frame block, inter-frame block) pairs of the aggregator.
    mlp_ratio: hidden width of the MLPs relative to their block's width, in all blocks.
    camera_depth, camera_num_heads: blocks of the camera head, 2C wide, and their attention heads.
    register_layers: layers whose second block only processes camera and register tokens.
    dpt_layers: the four layers that the dense head reads, from fine to coarse.
    dpt_out_channels, dpt_features: channels of those four after their projection; channels after fusion.
    enable_camera, enable_depth, enable_text: a disabled head has no module and no weights. Only the public checkpoint
        for images of 256 pixels has the text head.
    """

    kind = "VGGT-Omega"
    head_fields = MappingProxyType(
        {"camera_head": "enable_camera", "dense_head": "enable_depth", "text_alignment_head": "enable_text"}
    )
    own_names = ("aggregator.inter_frame_blocks.", "dense_head.", "text_alignment_head.")
    model_type: ClassVar[str] = "vggt_omega"

    img_size: int = 512
    patch_size: int = 16
    embed_dim: int = 1024
    encoder_depth: int = 24
    encoder_num_heads: int = 16
    depth: int = 24
    num_heads: int = 16
    mlp_ratio: float | int = 4.0
    num_register_tokens: int = 16
    register_layers: list[int] = field(default_factory=lambda: [2, 6, 9, 14, 20])
    camera_depth: int = 4
    camera_num_heads: int = 16
    dpt_layers: list[int] = field(default_factory=lambda: [4, 11, 17, 23])
    dpt_features: int = 256
    dpt_out_channels: list[int] = field(default_factory=lambda: [256, 512, 1024, 1024])
    enable_camera: bool = True
    enable_depth: bool = True
    enable_text: bool = False

    def validate_sizes(self) -> None:
        """Runs after construction, since `@strict` calls every `validate_*` method."""
        self._check_least(
            *("img_size", "patch_size", "embed_dim", "encoder_depth", "encoder_num_heads", "depth", "num_heads"),
            *("num_register_tokens", "camera_depth", "camera_num_heads", "dpt_features"),
        )
        if not self.mlp_ratio > 0:
            raise ValueError(f"mlp_ratio must be above 0, got {shown(self.mlp_ratio)}")
        self._check_most(_MOST)
        self._check_multiple("img_size", self.patch_size, "patch_size")
        for field_name in ("encoder_num_heads", "num_heads"):
            why = f"4 * {field_name}: RoPE turns pairs of channels along two axes"
            self._check_multiple("embed_dim", 4 * getattr(self, field_name), why)
        heads = {"camera_num_heads": self.camera_num_heads} if self.enable_camera else {}
        heads |= {"the text head's attention heads": TEXT_HEADS} if self.enable_text else {}
        for what, count in heads.items():
            if 2 * self.embed_dim % count:
                raise ValueError(f"2 * embed_dim must be a multiple of {what}, {count}; got embed_dim {self.embed_dim}")
        self._check_layers("register_layers")
        if len(set(self.register_layers)) < len(self.register_layers):
            raise ValueError(f"register_layers must name a layer once, got {shown(self.register_layers)}")
        if self.enable_depth:
            self._check_dense_heads(_MOST["dpt_features"])
            self._check_multiple("dpt_features", 4, "position embedding")
            self._check_multiple("patch_size", MAP_STRIDE, "the dense head's maps have a quarter of the image's size")
        self._check_parameters(self.least_parameters())

    def least_parameters(self) -> int:
        """Number of weights in matrices and kernels: a lower bound, at most 3 % below the number of parameters."""
        dim = self.embed_dim
        count = 3 * self.patch_size**2 * dim + 2 * self.num_register_tokens * dim
        count += (self.encoder_depth + 2 * self.depth) * block_parameters(dim, self.mlp_ratio)
        head_block = block_parameters(2 * dim, self.mlp_ratio)
        count += self.camera_depth * head_block + 2 * dim * dim if self.enable_camera else 0
        count += TEXT_BLOCKS * head_block + 4 * dim * dim if self.enable_text else 0
        return count + (fusion_parameters(self, self.dpt_features) if self.enable_depth else 0)
