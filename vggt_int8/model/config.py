"""The shape of a VGGT network; the defaults are those of VGGT-1B (`facebook/VGGT-1B`)."""

from dataclasses import field
from types import MappingProxyType
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from vggt_int8.model.network_config import NetworkConfig, with_plain_errors
from vggt_int8.model.size import least_parameters
from vggt_int8.plain_data import shown

VGGT_1B_DIM = 1024
TRACK_HEADS = 8  # attention heads of the track head's transformer: a constant of the architecture
POSE_CONVENTIONS = ("camera_from_world", "world_from_camera")
# field -> the largest plausible value; above, a config.json is corrupted or malicious.
_MOST = {
    "img_size": 16384,
    "patch_size": 512,
    "embed_dim": 32768,
    "num_register_tokens": 4096,
    "encoder_depth": 256,
    "depth": 256,
    "camera_depth": 64,
    "camera_iterations": 64,
    "encoder_num_heads": 1024,
    "num_heads": 1024,
    "camera_num_heads": 1024,
    "mlp_ratio": 64,
    "rope_freq": 1e9,
    "dpt_features": 16384,
    "track_features": 8192,
    "track_iterations": 64,
    "track_hidden_size": 16384,
    "track_corr_levels": 16,
    "track_corr_radius": 64,
}


@with_plain_errors
@strict
class VGGTConfig(NetworkConfig):
    """Sizes and switches of a VGGT network. Invalid values raise ValueError, naming the field and the value.

    img_size: side in pixels of the square image whose patch grid the stored position embedding covers; other sizes and
        aspect ratios work too, since the embedding is resized.
    embed_dim: token width C. The heads read concatenated frame and global tokens, 2C wide.
    encoder_depth, depth: blocks of the image encoder; (frame block, global block) pairs of the aggregator.
    mlp_ratio: hidden width of the MLPs relative to their block's width (encoder, aggregator, camera head).
    camera_depth, camera_iterations: blocks of the camera head; number of pose refinements.
    dpt_layers: the four aggregator layers that the dense heads read, from fine to coarse.
    dpt_out_channels, dpt_features: channels of those four after their projection; channels after fusion.
    track_corr_levels, track_corr_radius: correlation pyramid levels; radius of the search window in pixels.
    track_uv_embedding: whether the track head's feature maps get the position embedding of the other dense heads. None
        means no at VGGT-1B's width, as in the public checkpoint, and yes otherwise, as in the golden networks of the
        tests, which lack this field. A saved config is explicit.
    pose_convention: what the camera head's weights predict: "camera_from_world" as VGGT-1B, or "world_from_camera", as
        some derived mapping networks do. Output poses are always camera-from-world.
    enable_camera, enable_depth, enable_point, enable_track: a disabled head has no module and no weights.
    """

    kind = "VGGT"
    head_fields = MappingProxyType({f"{head}_head": f"enable_{head}" for head in ("camera", "depth", "point", "track")})
    own_names = ("aggregator.global_blocks.", "depth_head.", "point_head.", "track_head.")
    model_type: ClassVar[str] = "vggt"

    img_size: int = 518
    patch_size: int = 14
    embed_dim: int = 1024
    num_register_tokens: int = 4
    encoder_depth: int = 24
    encoder_num_heads: int = 16
    depth: int = 24
    num_heads: int = 16
    mlp_ratio: float | int = 4.0
    rope_freq: float | int = 100.0
    camera_depth: int = 4
    camera_num_heads: int = 16
    camera_iterations: int = 4
    dpt_features: int = 256
    dpt_out_channels: list[int] = field(default_factory=lambda: [256, 512, 1024, 1024])
    dpt_layers: list[int] = field(default_factory=lambda: [4, 11, 17, 23])
    track_features: int = 128
    track_iterations: int = 4
    track_corr_levels: int = 7
    track_corr_radius: int = 4
    track_hidden_size: int = 384
    track_uv_embedding: bool | None = None
    pose_convention: str = POSE_CONVENTIONS[0]
    enable_camera: bool = True
    enable_depth: bool = True
    enable_point: bool = True
    enable_track: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        if self.track_uv_embedding is None:
            self.track_uv_embedding = self.embed_dim != VGGT_1B_DIM
        super().__post_init__(**kwargs)

    def validate_sizes(self) -> None:
        """Runs after construction, since `@strict` calls every `validate_*` method."""
        self._check_ranges()
        self._check_widths()
        if self.pose_convention not in POSE_CONVENTIONS:
            known = ", ".join(map(repr, POSE_CONVENTIONS))
            raise ValueError(f"pose_convention is {shown(self.pose_convention)}; choose one of {known}")
        if self.enable_depth or self.enable_point or self.enable_track:
            self._check_dense_heads(_MOST["dpt_features"])
            self._check_multiple("dpt_features", 8, "for the position embedding of its half")
        if self.enable_track:
            self._check_multiple("track_features", 4, "for its position embedding")
            self._check_multiple("track_hidden_size", TRACK_HEADS, "its number of attention heads")
        self._check_parameters(self.least_parameters())

    def least_parameters(self) -> int:
        """Number of weights in matrices and kernels: a lower bound, at most 3 % below the number of parameters."""
        return least_parameters(self)

    def _check_ranges(self) -> None:
        self._check_least(
            *("img_size", "patch_size", "embed_dim", "encoder_depth", "encoder_num_heads", "depth", "num_heads"),
            *("camera_depth", "camera_num_heads", "camera_iterations", "dpt_features", "track_features"),
            *("track_iterations", "track_corr_levels", "track_corr_radius", "track_hidden_size"),
        )
        for name in ("mlp_ratio", "rope_freq"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {shown(getattr(self, name))}")
        self._check_most(_MOST)
        if self.num_register_tokens < 0:
            raise ValueError(f"num_register_tokens must not be negative, got {self.num_register_tokens}")

    def _check_widths(self) -> None:
        self._check_multiple("img_size", self.patch_size, "patch_size")
        self._check_multiple("embed_dim", self.encoder_num_heads, "encoder_num_heads")
        self._check_multiple(
            "embed_dim", 4 * self.num_heads, "4 * num_heads: RoPE turns pairs of channels along two axes"
        )
        if self.enable_camera and 2 * self.embed_dim % self.camera_num_heads:
            raise ValueError(
                f"2 * embed_dim must be a multiple of camera_num_heads {self.camera_num_heads}, "
                f"got embed_dim {self.embed_dim}"
            )
