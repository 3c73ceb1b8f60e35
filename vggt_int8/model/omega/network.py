"""VGGT-Ω: cameras and depth of a scene from its images, and tokens that describe it, in one forward pass.

Written from the names and shapes of the public checkpoints' state dicts (`facebook/VGGT-Omega`), which this network's
are, and from outputs of the public code (tests/data/parity_omega). Dtypes, fp32 islands and compilation are as in
`vggt_int8.model.vggt`.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils import ModelOutput

from vggt_int8.geometry import pose_encoding_to_camera, unproject_depth
from vggt_int8.model.call import check_chunk_size, check_range, checked_images, known_heads
from vggt_int8.model.network import Network
from vggt_int8.model.omega.aggregator import OmegaAggregator
from vggt_int8.model.omega.camera_head import OmegaCameraHead
from vggt_int8.model.omega.config import VGGTOmegaConfig
from vggt_int8.model.omega.dense_head import OmegaDenseHead
from vggt_int8.model.omega.encoder import OmegaEncoder
from vggt_int8.model.omega.files import is_weight_file, read_weights, weight_file
from vggt_int8.model.omega.layers import ConstantBuffer
from vggt_int8.model.omega.text_head import TextAlignmentHead

HEADS = ("camera", "depth", "text")


@dataclass
class VGGTOmegaOutput(ModelOutput):
    """What VGGT-Ω predicts, in fp32. Fields of heads that did not run are None, and missing as keys.

    B scenes, S frames, H x W pixels, R registers. The first frame's camera is the world frame; scale is relative.

    pose_enc, extrinsic, intrinsic, depth, depth_conf, images: as in `VGGTOutput`.
    camera_and_register_tokens: [B, S, 1 + R, 2C], of the last layer: a short description of frames and scene.
    text_alignment_embedding: [B, 2C], of length 1: to be compared with embeddings of text by their inner product.
    text_alignment_token: [B, 2C]: the token that it is made of.
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


class VGGTOmega(Network):
    """The plain network."""

    config_class = VGGTOmegaConfig
    int8_hint = "there are no recipes for VGGT-Omega; leave out recipe= and backend="
    quantized_hint = "there are no recipes for VGGT-Omega; load the floating-point checkpoint"
    _no_split_modules = ["Block", "OmegaCameraHead", "OmegaDenseHead", "TextAlignmentHead"]  # noqa: RUF012

    def __init__(self, config: VGGTOmegaConfig) -> None:
        super().__init__(config)
        self.aggregator = OmegaAggregator(config)
        self.camera_head = OmegaCameraHead(config) if config.enable_camera else None
        self.dense_head = OmegaDenseHead(config) if config.enable_depth else None
        self.text_alignment_head = TextAlignmentHead(config) if config.enable_text else None
        parts = ("camera_head", "dense_head", "text_alignment_head")
        # A checkpoint may hold more heads than are wanted.
        self._keys_to_ignore_on_load_unexpected = {rf"^{part}\." for part in parts if getattr(self, part) is None}
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
        """Load the network from a file of weights, from one of a Hub repository or folder, or from a saved folder.

        pretrained_model_name_or_path: a `.pt` or `.safetensors` file, a folder, or a Hub id.
        filename: of the weights in that folder or repository, such as "VGGT-Omega-1B-512/model.pt": the public ones
            have no config.json. Sizes come from `config=` or fields such as `enable_camera=False`, and are else those
            of the public checkpoints; heads are those that the file has, and a checkpoint's other heads stay unread.
        verify, kwargs: as of every network, see `Network.from_pretrained`.

        Pickles are read as tensors alone (`weights_only`). Raises `CheckpointError` for files that are none, ValueError
        for weights of another network, TypeError for a keyword that would have no effect.
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
        _check_constants(model[0] if isinstance(model, tuple) else model, source)
        return model

    if TYPE_CHECKING:  # nn.Module's own says Any

        def __call__(
            self, images: Tensor, heads: Sequence[str] | None = None, frames_chunk_size: int | None = 8
        ) -> VGGTOmegaOutput: ...

    def forward(
        self, images: Tensor, heads: Sequence[str] | None = None, frames_chunk_size: int | None = 8
    ) -> VGGTOmegaOutput:
        """Run the network.

        images: [S, 3, H, W] or [B, S, 3, H, W], RGB in [0, 1]; H and W multiples of the patch size.
        heads: which heads run, of "camera", "depth", "text"; None: all that the model has.
        frames_chunk_size: frames that the dense head works on at a time (None: all). Less memory, same result.

        Raises ValueError or TypeError, naming the value, on inputs that do not fit. On a CPU that includes images that
        go far beyond [0, 1]; on a GPU values are not read, for that would wait for the device.
        """
        config, moved = self.config, "_hf_hook" in vars(self)  # by accelerate, where the model lies on several devices
        images = checked_images(images, config.patch_size, None if moved else self.aggregator.camera_token.device)
        parts = {"camera": self.camera_head, "depth": self.dense_head, "text": self.text_alignment_head}
        present = tuple(head for head, part in parts.items() if part is not None)
        heads = present if heads is None else known_heads(heads, HEADS, present)
        check_chunk_size(frames_chunk_size)
        if images.device.type == "cpu" and not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
            check_range(images)
        return self.predict(images, heads, frames_chunk_size)

    def predict(self, images: Tensor, heads: Sequence[str], frames_chunk_size: int | None) -> VGGTOmegaOutput:
        """The network itself, for checked arguments; images [B, S, 3, H, W]."""
        size = (images.shape[-2], images.shape[-1])
        last = self.config.depth - 1
        tokens = self.aggregator(images, {last, *self.config.dpt_layers} if "depth" in heads else {last})
        special = tokens[last][:, :, : self.aggregator.num_special]
        output = VGGTOmegaOutput(images=images, camera_and_register_tokens=special.float())
        if self.camera_head is not None and "camera" in heads:
            output.pose_enc = self.camera_head(special)
            output.extrinsic, output.intrinsic = pose_encoding_to_camera(output.pose_enc, size)
        if self.dense_head is not None and "depth" in heads:
            output.depth, output.depth_conf = self.dense_head(tokens, size, frames_chunk_size)
        if self.text_alignment_head is not None and "text" in heads:
            output.text_alignment_embedding, output.text_alignment_token = self.text_alignment_head(special)
        return output

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


def _check_constants(model: VGGTOmega, source: str) -> None:
    """Raise ValueError where a checkpoint's buffers are not the constants that this network computes with."""
    for name, module in model.named_modules():
        if isinstance(module, ConstantBuffer):
            values = module.get_buffer(module.buffer)
            if not (values.is_meta or module.holds(values)):
                raise ValueError(f"{source} is of another network than VGGT-Omega: {name}.{module.buffer} differs")
