"""VGGT: cameras, depth, points and tracks of a scene from its images, in one forward pass.

Source of the architecture: Wang et al., "VGGT: Visual Geometry Grounded Transformer" (2025). Names and shapes of the
state dict are those of the public checkpoint, `facebook/VGGT-1B`.

The dtype of the parameters is the dtype of the computation. Layers that need more range or precision contain an fp32
island, and all results are fp32. The forward pass never synchronizes with the device or reads a value from it, so it
compiles into one graph and can be captured in a CUDA graph (after one call, which fills the constant tables).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils import ModelOutput

from vggt_int8.geometry import invert_pose_encoding, pose_encoding_to_camera
from vggt_int8.model.aggregator import DESCRIPTOR, Aggregator
from vggt_int8.model.call import HEADS, Call, check_range, layers_read
from vggt_int8.model.camera_head import CameraHead
from vggt_int8.model.config import POSE_CONVENTIONS, VGGTConfig
from vggt_int8.model.dpt_head import DPTHead
from vggt_int8.model.encoder import Encoder
from vggt_int8.model.network import Network
from vggt_int8.model.track_former import MultiheadAttention, UpdateFormer
from vggt_int8.model.track_head import Tracker, TrackHead


@dataclass
class VGGTOutput(ModelOutput):
    """The predictions of VGGT, in fp32. Fields of heads that did not run are None, and absent as keys.

    B scenes, S frames, H x W pixels, N query points. The world frame is the first frame's camera; scale is relative.

    pose_enc: [B, S, 9]: translation 3, quaternion 4 (x, y, z, w), field of view 2 (height, width; radians).
    extrinsic: [B, S, 3, 4]: camera from world, [R | t], OpenCV axes (x right, y down, z forward).
    intrinsic: [B, S, 3, 3]: in pixels of the input images, principal point at the center.
    depth, depth_conf: [B, S, H, W, 1] along the camera's z axis; [B, S, H, W], above 1.
    world_points, world_points_conf: [B, S, H, W, 3] in the world frame; [B, S, H, W], above 1.
    images: [B, S, 3, H, W], the unmodified input.
    track, vis, conf: [B, S, N, 2] in pixels (x, y); visibility and confidence [B, S, N] in (0, 1).
    descriptor: [B, S, C], if requested: the mean patch token of each frame, for place recognition.
    pose_enc_list: in training mode only, `pose_enc` of every refinement, so that a loss can weight each.
    """

    pose_enc: Tensor | None = None
    extrinsic: Tensor | None = None
    intrinsic: Tensor | None = None
    depth: Tensor | None = None
    depth_conf: Tensor | None = None
    world_points: Tensor | None = None
    world_points_conf: Tensor | None = None
    images: Tensor | None = None
    track: Tensor | None = None
    vis: Tensor | None = None
    conf: Tensor | None = None
    descriptor: Tensor | None = None
    pose_enc_list: tuple[Tensor, ...] | None = None


class VGGT(Network):
    """The plain network; `vggt_int8.VGGTInt8` is its quantizable form."""

    config_class = VGGTConfig
    output_class = VGGTOutput
    head_modules = MappingProxyType({head: f"{head}_head" for head in HEADS})
    int8_hint = "VGGTInt8.from_pretrained takes recipe= and backend="
    quantized_hint = "load it with VGGTInt8.from_pretrained"
    _no_split_modules = ["Block", "CameraHead", "DPTHead", "DPTFeatures", "Tracker"]  # noqa: RUF012

    def __init__(self, config: VGGTConfig) -> None:
        super().__init__(config)
        self.aggregator = Aggregator(config)
        self.camera_head = CameraHead(config) if config.enable_camera else None
        self.point_head = DPTHead(config, num_values=3, activation="inv_log") if config.enable_point else None
        self.depth_head = DPTHead(config, num_values=1, activation="exp") if config.enable_depth else None
        self.track_head = TrackHead(config) if config.enable_track else None
        # A checkpoint may hold more heads than are wanted.
        absent = {rf"^{head}_head\." for head in HEADS if getattr(self, f"{head}_head") is None}
        self._keys_to_ignore_on_load_unexpected = absent
        self.post_init()

    if TYPE_CHECKING:  # nn.Module's own says Any

        def __call__(
            self,
            images: Tensor,
            query_points: Tensor | None = None,
            heads: Sequence[str] | None = None,
            frames_chunk_size: int | None = 8,
            global_attention: str | Sequence[str] | None = None,
            keyframes: int | None = None,
            descriptors: bool = False,
        ) -> VGGTOutput: ...

    def forward(
        self,
        images: Tensor,
        query_points: Tensor | None = None,
        heads: Sequence[str] | None = None,
        frames_chunk_size: int | None = 8,
        global_attention: str | Sequence[str] | None = None,
        keyframes: int | None = None,
        descriptors: bool = False,
    ) -> VGGTOutput:
        """Run the network.

        images: [S, 3, H, W] or [B, S, 3, H, W], RGB in [0, 1]; H and W multiples of the patch size.
        query_points: [N, 2] or [B, N, 2], pixels (x, y) inside the first frame to track; floats or integers.
        heads: the heads to run, of "camera", "depth", "point", "track"; None runs all that the model has, the track
            head only if there are query points.
        frames_chunk_size: frames that a dense head works on at a time (None: all). Smaller values need less memory and
            give the same result.
        global_attention: what global blocks attend to: "exact" (all tokens; the default unless the recipe says
            otherwise), "keyframes" (tokens of `keyframes` frames, by default 40: much faster above about 40 frames),
            "frames" (the query's own frame), "auto" (key frames in scenes of at least 48 frames), or a list with one of
            these per layer. See `vggt_int8.global_attention`.
        descriptors: also return `descriptor`, at no cost.

        Raises ValueError or TypeError, naming the value, for invalid inputs. On a CPU this includes images far outside
        [0, 1]; on a GPU values are not checked, since that would synchronize with the device.
        """
        how = (global_attention, keyframes, descriptors)
        call = self.checked_call(images, query_points, heads, frames_chunk_size, *how)
        if call.images.device.type == "cpu" and not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
            check_range(call.images)
        return self.predict(call)

    def checked_call(self, *args: Any, **kwargs: Any) -> Call:
        return Call.of(self, *args, **kwargs)

    def layers_read(self, heads: Collection[str]) -> frozenset[int]:
        return layers_read(heads, self.config)

    def predict(self, call: Call) -> VGGTOutput:
        """The network itself: image encoder and alternating attention produce tokens, and each head reads those it
        needs.
        """
        images, chunk = call.images, call.frames_chunk_size
        size = (images.shape[-2], images.shape[-1])
        output = VGGTOutput(images=images)
        tokens = self.aggregator(images, call.layers_read, call.attention, call.descriptors, call.shard)
        output.descriptor = tokens.pop(DESCRIPTOR, None)
        if self.camera_head is not None and "camera" in call.heads:
            poses = self.camera_head(call.of_all_frames(tokens[self.config.depth - 1][:, :, 0]))
            poses = [self.as_camera_from_world(pose) for pose in poses]
            output.pose_enc = poses[-1]
            output.extrinsic, output.intrinsic = pose_encoding_to_camera(poses[-1], size)
            if self.training:
                output.pose_enc_list = tuple(poses)
        if self.depth_head is not None and "depth" in call.heads:
            output.depth, output.depth_conf = self.depth_head(tokens, size, chunk)
        if self.point_head is not None and "point" in call.heads:
            output.world_points, output.world_points_conf = self.point_head(tokens, size, chunk)
        if self.track_head is not None and call.query_points is not None:
            tracks, output.vis, output.conf = self.track_head(tokens, size, call.query_points, chunk, call.shard)
            output.track = tracks[-1]
        return output

    def as_camera_from_world(self, pose_enc: Tensor) -> Tensor:
        """Convert pose encodings [..., 9] of the camera head to camera-from-world."""
        return pose_enc if self.config.pose_convention == POSE_CONVENTIONS[0] else invert_pose_encoding(pose_enc)

    @property
    def special_tokens(self) -> dict[str, int]:
        parts = ("patch_embed.blocks", "frame_blocks", "global_blocks")
        return {f"aggregator.{part}": self.aggregator.num_special for part in parts}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Random weights, initialized as in the reference code. `init` skips what was loaded from a checkpoint."""
        super()._init_weights(module)
        match module:
            case Encoder():
                init.trunc_normal_(module.pos_embed, std=0.02)
                init.normal_(module.cls_token, std=1e-6)
                if module.register_tokens is not None:
                    init.normal_(module.register_tokens, std=1e-6)
                init.zeros_(module.mask_token)
            case Aggregator():
                init.normal_(module.camera_token, std=1e-6)
                init.normal_(module.register_token, std=1e-6)
            case CameraHead():
                init.zeros_(module.empty_pose_tokens)
            case MultiheadAttention():
                init.xavier_uniform_(module.in_proj_weight)
                init.zeros_(module.in_proj_bias)
            case UpdateFormer():
                init.normal_(module.virual_tracks)
                init.trunc_normal_(module.flow_head.weight, std=0.001)
            case Tracker():
                init.normal_(module.query_ref_token)
