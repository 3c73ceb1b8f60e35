"""Guards against a quantizer that does nothing, which would have good scores: proves that a quantized row is active."""

from collections.abc import Collection, Mapping

from torch import nn

from vggt_int8.quant.layer import int8_layers

SHARED = "aggregator."  # what every head reads


def int8_layer_names(model: nn.Module) -> list[str]:
    """Names of a model's INT8 layers; empty for a plain one."""
    return [name for name, _ in int8_layers(model)]


def check_active(row: str, layers: Collection[str], relative: Mapping[str, float]) -> None:
    """Raise RuntimeError, naming the row, if it has INT8 layers and its outputs are exactly the plain model's.

    layers: from `int8_layer_names`. With one of them in the aggregator, every output must differ; with layers in heads
        only, some output must.
    relative: output -> ||got - plain|| / ||plain|| over all scenes.
    """
    if not layers or not relative:
        return
    reach_all = any(name.startswith(SHARED) for name in layers)
    same = [output for output, error in relative.items() if error == 0]
    if same and (reach_all or len(same) == len(relative)):
        raise RuntimeError(
            f"{row}: outputs are exactly those of fp32 ({', '.join(same)}), so the quantization of its {len(layers)} "
            "layers was not active"
        )
