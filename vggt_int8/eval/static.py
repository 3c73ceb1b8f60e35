"""Plain static quantization, as a yardstick: one input scale per layer from the largest value that was ever seen.

This is what a first attempt at static INT8 does, and what outlier channels ruin: no observer, no smoothing, nothing
that knows of outliers.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from vggt_int8.kernels.reference import scale_from_absmax
from vggt_int8.quant.linear import Int8Linear
from vggt_int8.quant.quantize import apply_plan, plan_module, replace_module
from vggt_int8.recipe import Recipe, load_recipe


def quantize_static(
    model: nn.Module, images: Iterable[Tensor], recipe: str | Recipe = "int8_dynamic", backend: str = "reference"
) -> nn.Module:
    """Quantize `model` in place by `recipe`, with static per-tensor scales where it asks for dynamic ones.

    images: calibration batches [B, S, 3, H, W] or [S, 3, H, W], on the model's device. Raises ValueError if a layer
    was never called with them, and what `quantize` raises.
    """
    recipe = load_recipe(recipe)
    plan = plan_module(model, recipe, backend)
    schemes = {name: layer.scheme for name, layer in plan.items() if layer.scheme is not None}
    static = [name for name, scheme in schemes.items() if scheme.activations == "dynamic"]
    largest = input_absmax(model, static, images)
    apply_plan(model, {name: layer for name, layer in plan.items() if name not in largest}, recipe, backend)
    for name, absmax in largest.items():
        linear: Any = model.get_submodule(name)
        scale = scale_from_absmax(absmax)
        replace_module(model, name, Int8Linear.from_linear(linear, "static", backend, input_scale=scale))
    return model


@torch.no_grad()
def input_absmax(model: nn.Module, names: Iterable[str], images: Iterable[Tensor]) -> dict[str, Tensor]:
    """The largest absolute input value of each named layer over all batches: name -> fp32 scalar tensor.

    Raises ValueError for a layer that no batch reached.
    """
    names = list(names)
    largest: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen = args[0].detach().abs().amax().float()
            largest[name] = torch.maximum(largest[name], seen) if name in largest else seen

        return model.get_submodule(name).register_forward_pre_hook(hook)

    hooks = [watch(name) for name in names]
    try:
        for batch in images:
            model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    if missing := sorted(set(names) - set(largest)):
        raise ValueError(f"{len(missing)} layers were never called with these images, the first is {missing[0]}")
    return largest
