"""VGGT-Ω: cameras and depth of a scene from its images, and tokens that describe it, in one forward pass.

Written from the names and shapes of the public checkpoints' state dicts (`facebook/VGGT-Omega`), which this network
shares, and from outputs of the public code (tests/data/parity_omega). Dtypes, fp32 islands and compilation are as in
`vggt_int8.model.vggt`.
"""

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils import ModelOutput

from vggt_int8.geometry import pose_encoding_to_camera, unproject_depth
from vggt_int8.global_attention import GlobalAttention
from vggt_int8.model.aggregator import DESCRIPTOR
from vggt_int8.model.call import Call, check_chunk_size, check_range, checked_images, known_heads
from vggt_int8.model.files import is_weight_file, weight_file
from vggt_int8.model.network import Network
from vggt_int8.model.omega.aggregator import OmegaAggregator
from vggt_int8.model.omega.camera_head import OmegaCameraHead
from vggt_int8.model.omega.config import VGGTOmegaConfig
from vggt_int8.model.omega.constants import ConstantBuffer
from vggt_int8.model.omega.dense_head import OmegaDenseHead
from vggt_int8.model.omega.encoder import OmegaEncoder
from vggt_int8.model.omega.files import read_weights
from vggt_int8.model.omega.text_head import TextAlignmentHead

HEADS = {"camera": "camera_head", "depth": "dense_head", "text": "text_alignment_head"}


@dataclass
class VGGTOmegaOutput(ModelOutput):
    """The predictions of VGGT-Ω, in fp32. Fields of heads that did not run are None, and absent as keys.

    B scenes, S frames, H x W pixels, R registers. The world frame is the first frame's camera; scale is relative.

    pose_enc, extrinsic, intrinsic, depth, depth_conf, images: as in `VGGTOutput`.
    camera_and_register_tokens: [B, S, 1 + R, 2C], of the last layer: a compact description of frames and scene.
    text_alignment_embedding: [B, 2C], of unit length, to be compared with text embeddings by inner product.
    text_alignment_token: [B, 2C], the token that it is computed from.
    descriptor: as in `VGGTOutput`, if requested.
    """

    pose_enc: Tensor | None = None
    extrinsic: Tensor | None = None
    intrinsic: Tensor | None = None
    depth: Tensor | None = None
    depth_conf: Tensor | None = None
    images: Tensor | None = None
    camera_and_register_tokens: Tensor | None = None
    text_alignment_embedding: Tensor | None = None
    text_alignment_token: Tensor | None = None
    descriptor: Tensor | None = None

    @property
    def pose_enc_list(self) -> tuple[Tensor, ...] | None:
        """`pose_enc` of every refinement, as in `VGGTOutput`, for a loss: there is one."""
        return None if self.pose_enc is None else (self.pose_enc,)

    @property
    def world_points(self) -> Tensor | None:
        """[B, S, H, W, 3] in the world frame, from depth and cameras; None without both. Computed on each access."""
        if self.depth is None or self.extrinsic is None or self.intrinsic is None:
            return None
        return unproject_depth(self.depth, self.extrinsic, self.intrinsic)


def layers_read(heads: Collection[str], config: VGGTOmegaConfig) -> frozenset[int]:
    """Aggregator layers whose tokens these heads read; the last layer is always an output."""
    return frozenset({config.depth - 1, *(config.dpt_layers if "depth" in heads else ())})


class VGGTOmega(Network):
    """The plain network."""

    config_class = VGGTOmegaConfig
    output_class = VGGTOmegaOutput
    head_modules = MappingProxyType(HEADS)
    int8_hint = "recipe= and backend= belong to VGGTOmegaInt8.from_pretrained"
    quantized_hint = "load it with VGGTOmegaInt8.from_pretrained"
    _no_split_modules = ["Block", "OmegaCameraHead", "OmegaDenseHead", "TextAlignmentHead"]  # noqa: RUF012

    def __init__(self, config: VGGTOmegaConfig) -> None:
        super().__init__(config)
        self.aggregator = OmegaAggregator(config)
        self.camera_head = OmegaCameraHead(config) if config.enable_camera else None
        self.dense_head = OmegaDenseHead(config) if config.enable_depth else None
        self.text_alignment_head = TextAlignmentHead(config) if config.enable_text else None
        # A checkpoint may hold more heads than are wanted.
        switched_off = [part for part in HEADS.values() if getattr(self, part) is None]
        self._keys_to_ignore_on_load_unexpected = {rf"^{part}\." for part in switched_off}
        self.post_init()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *args: Any,
        filename: str | None = None,
        verify: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load the network from a weight file, from one in a Hub repository or folder, or from a saved folder.

        pretrained_model_name_or_path: a `.pt` or `.safetensors` file, a folder, or a Hub id.
        filename: of the weights in that folder or repository, such as "vggt_omega_1b_512.pt": the public ones have no
            config.json. Sizes come from `config=` or fields such as `enable_camera=False`, and by default are those of
            the public checkpoints; heads are those in the file, and weights of disabled heads are not read.
        verify, kwargs: as for every network, see `Network.from_pretrained`.

        Pickles are read with `weights_only`. Raises `CheckpointError` for files that are not weights, ValueError for
        weights of another network, TypeError for a keyword that would have no effect.
        """
        source = os.path.expanduser(os.fspath(pretrained_model_name_or_path))
        if filename is None and not is_weight_file(source):
            model = super().from_pretrained(source, *args, verify=verify, **kwargs)
        else:
            if args or verify or not {"recipe", "backend"}.isdisjoint(kwargs):
                raise TypeError(f"a single file takes neither recipe= nor verify=: {cls.int8_hint}")
            path = weight_file(source, filename, kwargs)
            options, tensors = read_weights(path, kwargs)
            wants_info = bool(options.pop("output_loading_info", False))
            model, info = cls._load_told(path, options, tensors)
            model = (model, info) if wants_info else model
        (model[0] if isinstance(model, tuple) else model).check_constants(source)
        return model

    if TYPE_CHECKING:  # nn.Module's own says Any

        def __call__(
            self,
            images: Tensor,
            heads: Sequence[str] | None = None,
            frames_chunk_size: int | None = 8,
            global_attention: str | Sequence[str] | None = None,
            keyframes: int | None = None,
            descriptors: bool = False,
        ) -> VGGTOmegaOutput: ...

    def forward(
        self,
        images: Tensor,
        heads: Sequence[str] | None = None,
        frames_chunk_size: int | None = 8,
        global_attention: str | Sequence[str] | None = None,
        keyframes: int | None = None,
        descriptors: bool = False,
    ) -> VGGTOmegaOutput:
        """Run the network.

        images: [S, 3, H, W] or [B, S, 3, H, W], RGB in [0, 1]; H and W multiples of the patch size.
        heads: the heads to run, of "camera", "depth", "text"; None runs all that the model has.
        frames_chunk_size: frames that the dense head works on at a time (None: all). Smaller values need less memory
            and give the same result.
        global_attention, keyframes: as in `VGGT.forward`, for inter-frame blocks except those of register layers, which
            process few tokens anyway.
        descriptors: also return `descriptor`, at no cost.

        Raises ValueError or TypeError, naming the value, for invalid inputs. On a CPU this includes images far outside
        [0, 1]; on a GPU values are not checked, since that would synchronize with the device.
        """
        call = self.checked_call(images, heads, frames_chunk_size, global_attention, keyframes, descriptors)
        if call.images.device.type == "cpu" and not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
            check_range(call.images)
        return self.predict(call)

    def checked_call(
        self,
        images: Any,
        heads: Sequence[str] | None = None,
        frames_chunk_size: int | None = 8,
        global_attention: str | Sequence[str] | None = None,
        keyframes: int | None = None,
        descriptors: bool = False,
    ) -> Call:
        """A `Call` from the arguments of `forward`. Raises ValueError or TypeError, naming what does not fit."""
        config, moved = self.config, "_hf_hook" in vars(self)  # by accelerate, where the model lies on several devices
        images = checked_images(images, config.patch_size, None if moved else self.aggregator.camera_token.device)
        present = self.present_heads
        heads = present if heads is None else known_heads(heads, tuple(HEADS), present)
        check_chunk_size(frames_chunk_size)
        attention = GlobalAttention.of(config.depth, global_attention, keyframes, self.default_attention)
        return Call(images, None, heads, frames_chunk_size, self.layers_read(heads), attention, descriptors)

    def layers_read(self, heads: Collection[str]) -> frozenset[int]:
        return layers_read(heads, self.config)

    def predict(self, call: Call) -> VGGTOmegaOutput:
        """The network itself: image encoder and alternating attention produce tokens, and each head reads those it
        needs.
        """
        images, heads = call.images, call.heads
        size = (images.shape[-2], images.shape[-1])
        last = self.config.depth - 1
        tokens = self.aggregator(images, call.layers_read, call.attention, call.descriptors, call.shard)
        special = call.of_all_frames(tokens[last][:, :, : self.aggregator.num_special])
        output = VGGTOmegaOutput(images=images, camera_and_register_tokens=special.float())
        output.descriptor = tokens.pop(DESCRIPTOR, None)
        if self.camera_head is not None and "camera" in heads:
            output.pose_enc = self.camera_head(special)
            output.extrinsic, output.intrinsic = pose_encoding_to_camera(output.pose_enc, size)
        if self.dense_head is not None and "depth" in heads:
            output.depth, output.depth_conf = self.dense_head(tokens, size, call.frames_chunk_size)
        if self.text_alignment_head is not None and "text" in heads:
            output.text_alignment_embedding, output.text_alignment_token = self.text_alignment_head(special)
        return output

    @property
    def global_layers(self) -> tuple[int, ...]:
        return tuple(sorted(set(range(self.config.depth)) - self.aggregator.register_layers))

    @property
    def special_tokens(self) -> dict[str, int]:
        aggregator = self.aggregator
        blocks = {f"aggregator.{part}": aggregator.num_special for part in ("frame_blocks", "inter_frame_blocks")}
        return {"aggregator.patch_embed.blocks": aggregator.patch_embed.num_special, **blocks}

    @property
    def special_alone(self) -> tuple[str, ...]:
        return tuple(f"aggregator.inter_frame_blocks.{layer}." for layer in sorted(self.config.register_layers))

    def check_constants(self, source: str) -> None:
        """Raise ValueError if a checkpoint's buffers are not the constants that this network computes with."""
        for name, module in self.named_modules():
            if isinstance(module, ConstantBuffer):
                values = module.get_buffer(module.buffer)
                if not (values.is_meta or module.holds(values)):
                    raise ValueError(f"{source} is of another network than VGGT-Omega: {name}.{module.buffer} differs")

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Random weights to start training with. `init` skips what was loaded from a checkpoint."""
        if isinstance(module, ConstantBuffer):
            init.copy_(module.get_buffer(module.buffer), module.constants())
        super()._init_weights(module)
        match module:
            case OmegaEncoder():
                init.normal_(module.cls_token, std=1e-6)
                init.normal_(module.storage_tokens, std=1e-6)
                init.zeros_(module.mask_token)
            case OmegaAggregator():
                init.normal_(module.camera_token, std=1e-6)
                init.normal_(module.register_token, std=1e-6)
            case TextAlignmentHead():
                init.trunc_normal_(module.language_token, std=0.02)
