"""Which kernel a fused call takes for each layer, in words, for `quantization_report()`."""

from collections.abc import Iterator

from torch import nn

from vggt_int8.model.vggt import VGGT
from vggt_int8.quant.linear import Int8Linear
from vggt_int8.runtime import dense, linear


def fused_kernels(model: VGGT, device_type: str) -> dict[str, str]:
    """Name of an INT8 layer -> what multiplies it on "cpu" or "cuda"; layers that are called as modules are missing."""
    names = {module: name for name, module in model.named_modules()}
    found: dict[nn.Module, str] = {layer: linear.kernel(layer, device_type) for layer in _linears(model)}
    for head in (model.depth_head, model.point_head):
        if head is not None:
            found |= dense.kernels(head, device_type)
    if model.track_head is not None:
        found |= dense.kernels(model.track_head.feature_extractor, device_type)
    return {names[layer]: kernel for layer, kernel in found.items()}


def _linears(model: VGGT) -> Iterator[Int8Linear]:
    """Those of the blocks and of the camera head."""
    aggregator = model.aggregator
    parts = (aggregator.patch_embed.blocks, aggregator.frame_blocks, aggregator.global_blocks, model.camera_head)
    for part in parts:
        if part is not None:
            yield from (module for module in part.modules() if isinstance(module, Int8Linear))
