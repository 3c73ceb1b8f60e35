"""`VGGTInt8` and `VGGTOmegaInt8`: networks that can be quantized, saved and loaded."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import AutoModel

from vggt_int8.embedded import resolve_source
from vggt_int8.model.config import VGGTConfig
from vggt_int8.model.network_config import NetworkConfig
from vggt_int8.model.omega.config import VGGTOmegaConfig
from vggt_int8.model.omega.network import VGGTOmega, VGGTOmegaOutput
from vggt_int8.model.vggt import VGGT, VGGTOutput
from vggt_int8.pretrained.int8_network import Int8Network
from vggt_int8.pretrained.source import config_class_of
from vggt_int8.pretrained.streaming import Streaming


class VGGTInt8(Streaming, Int8Network, VGGT):
    """VGGT with INT8 weights, as a recipe says; without a recipe it is the plain network.

    model = VGGTInt8.from_pretrained("facebook/VGGT-1B", recipe="int8_dynamic", device_map="cuda")
    """

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
            check_finite: bool = True,
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
        check_finite: bool = True,
    ) -> VGGTOutput:
        """Run the network: see `VGGT.forward` for inputs and outputs.

        check_finite: raise `NonFiniteOutput`, naming the layer, if an output holds NaN or inf, and warn about a field
            of view of zero. Raise ValueError for images far outside [0, 1] (0 to 255, or normalized) and for query
            points outside them: on a CPU before the network runs, on a GPU afterwards, with a single synchronization.
            Skipped while compiling or capturing a CUDA graph.
        """
        how = (global_attention, keyframes, descriptors)
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # what they record are the network's modules
            return super().forward(images, query_points, heads, frames_chunk_size, *how)
        with self.asking():
            call = self.checked_call(images, query_points, heads, frames_chunk_size, *how)
        return self.run_checked(call, check_finite)


class VGGTOmegaInt8(Streaming, Int8Network, VGGTOmega):
    """VGGT-Omega with INT8 weights, as a recipe says; without a recipe it is the plain network.

    model = VGGTOmegaInt8.from_pretrained(
        "facebook/VGGT-Omega", filename="vggt_omega_1b_512.pt", recipe="int8_dynamic", device_map="cuda"
    )
    """

    if TYPE_CHECKING:

        def __call__(
            self,
            images: Tensor,
            heads: Sequence[str] | None = None,
            frames_chunk_size: int | None = 8,
            global_attention: str | Sequence[str] | None = None,
            keyframes: int | None = None,
            descriptors: bool = False,
            check_finite: bool = True,
        ) -> VGGTOmegaOutput: ...

    def forward(
        self,
        images: Tensor,
        heads: Sequence[str] | None = None,
        frames_chunk_size: int | None = 8,
        global_attention: str | Sequence[str] | None = None,
        keyframes: int | None = None,
        descriptors: bool = False,
        check_finite: bool = True,
    ) -> VGGTOmegaOutput:
        """Run the network: see `VGGTOmega.forward` for inputs and outputs, `VGGTInt8.forward` for check_finite."""
        how = (global_attention, keyframes, descriptors)
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return super().forward(images, heads, frames_chunk_size, *how)
        with self.asking():
            call = self.checked_call(images, heads, frames_chunk_size, *how)
        return self.run_checked(call, check_finite)


def int8_class(config: type[NetworkConfig]) -> type[Int8Network]:
    """The INT8 network for a config class."""
    return VGGTOmegaInt8 if issubclass(config, VGGTOmegaConfig) else VGGTInt8


def int8_class_of(source: str) -> type[Int8Network]:
    """The INT8 network class of a source, from its config.json or the names of its tensors.

    VGGT's if neither can be read: loading it reports why.
    """
    try:
        return int8_class(config_class_of(resolve_source(source)))
    except (OSError, ValueError):
        return VGGTInt8


# Replaces the placeholders that the package registers on import.
AutoModel.register(VGGTConfig, VGGTInt8)
AutoModel.register(VGGTOmegaConfig, VGGTOmegaInt8)
