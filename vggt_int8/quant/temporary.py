"""Temporarily quantized layers, to try a choice on a model that stays in floating point."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

from vggt_int8.quant.plan import LayerPlan
from vggt_int8.quant.quantize import layer_choice, replace_module
from vggt_int8.recipe import Recipe


@contextmanager
def temporarily_quantized(
    model: nn.Module, plan: Iterable[LayerPlan], recipe: Recipe, backend: str = "auto"
) -> Iterator[None]:
    """Inside the block, the layers of `plan` are INT8, as `recipe` has them on `backend`; afterwards, also after an
    error, the original float modules are back. Layers that the plan keeps are left alone.

    The float modules stay in memory meanwhile. Raises ValueError, naming the layer, for weights with NaN or inf.
    """
    floats: dict[str, nn.Module] = {}
    try:
        for layer in plan:
            if layer.scheme is None or layer.becomes is None:
                continue
            old = model.get_submodule(layer.name)
            choice = layer_choice(layer.becomes, layer.scheme, recipe, backend)
            try:
                new = layer.becomes.of(old, layer.scheme, choice.backend)
            except ValueError as error:
                raise ValueError(f"{layer.name}: {error}") from error
            assert isinstance(new, nn.Module)
            new.ask(choice)
            floats[layer.name] = old
            replace_module(model, layer.name, new)
        yield
    finally:
        for name, old in floats.items():
            replace_module(model, name, old)
