"""The kernels that a fused call uses for each layer, as text for `quantization_report()`."""

from collections.abc import Iterator

from torch import nn

from vggt_int8.model.dpt_head import Pyramid
from vggt_int8.model.families import AnyNetwork, dense_heads
from vggt_int8.model.omega.network import VGGTOmega
from vggt_int8.model.vggt import VGGT
from vggt_int8.quant.linear import Int8Linear
from vggt_int8.runtime import dense, linear
from vggt_int8.runtime.omega.dense import decoded


def fused_kernels(model: AnyNetwork, device_type: str) -> dict[str, str]:
    """Name of each INT8 layer -> description of its kernel on "cpu" or "cuda". Layers that run as modules are
    left out.
    """
    names = {module: name for name, module in model.named_modules()}
    found: dict[nn.Module, str] = {layer: linear.kernel(layer, device_type) for layer in _linears(model)}
    for head in _pyramids(model):
        found |= dense.kernels(head, device_type)
    if isinstance(model, VGGTOmega) and model.dense_head is not None:
        found = {layer: kernel for layer, kernel in found.items() if layer not in decoded(model.dense_head)}
    return {names[layer]: kernel for layer, kernel in found.items()}


def _pyramids(model: AnyNetwork) -> Iterator[Pyramid]:
    yield from dense_heads(model)
    if isinstance(model, VGGT) and model.track_head is not None:
        yield model.track_head.feature_extractor


def _linears(model: AnyNetwork) -> Iterator[Int8Linear]:
    """The INT8 linears of the blocks, and of the heads that consist of blocks."""
    parts: list[nn.Module | None] = [model.aggregator.patch_embed.blocks, model.aggregator.frame_blocks]
    if isinstance(model, VGGTOmega):
        parts += [model.aggregator.inter_frame_blocks, model.text_alignment_head]
    else:
        parts += [model.aggregator.global_blocks]
    parts += [model.camera_head]
    for part in parts:
        if part is not None:
            yield from (module for module in part.modules() if isinstance(module, Int8Linear))
