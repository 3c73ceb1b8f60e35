"""How exact each quantized layer is by itself: signal-to-noise of its output, in decibels."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from vggt_int8.difference import Difference
from vggt_int8.quant.layer import int8_layers
from vggt_int8.quant.smoothing import Fold
from vggt_int8.quant.unfold import folds_between


@torch.no_grad()
def layer_sqnr(
    model: nn.Module, quantized: nn.Module, images: Iterable[Tensor], query_points: Tensor | None = None
) -> dict[str, float]:
    """Name of each INT8 layer of `quantized` -> SQNR of its output against the float layer's, in decibels.

    Both see the same inputs: those that the layer of the floating-point `model` gets for `images` (batches
    [S, 3, H, W] or [B, S, 3, H, W], on the models' device), so that a layer answers for its own error alone. Sums run
    over all calls and all batches: SQNR = 10 log10(sum of squares of the float output / sum of squares of the
    difference); infinite where a layer is exact. Each layer is computed by itself, by its own backend and in the dtype
    of its input. Where smoothing has factors folded into its columns, it sees inputs divided by them, and value rows
    that are divided are multiplied before they are compared.

    query_points: [N, 2] pixels (x, y), without which a VGGT's track head does not run.

    Raises ValueError for a layer that `model` does not have, or that no batch reached, and if nothing is quantized.
    """
    layers = {name: layer for name, layer in int8_layers(quantized) if isinstance(layer, nn.Module)}
    floats = dict(model.named_modules())
    if not layers:
        raise ValueError(f"{type(quantized).__name__} has no INT8 layer: there is nothing to compare")
    if foreign := [name for name in layers if name not in floats]:
        raise ValueError(f"{foreign[0]!r} is INT8 here, and the floating-point model has no such layer")
    folds = folds_between(model, quantized)
    found = {name: Difference() for name in layers}
    reached: set[str] = set()

    def compare(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            reached.add(name)
            fold = folds.get(name, Fold())
            if fold.columns is not None:
                args = (args[0] / fold.columns.to(args[0]), *args[1:])
            computed = layers[name](*args, **kwargs)
            found[name].add(computed if fold.rows is None else computed / fold.rows.to(computed), output)

        return floats[name].register_forward_hook(hook, with_kwargs=True)

    hooks = [compare(name) for name in layers]
    try:
        for batch in images:
            model(batch) if query_points is None else model(batch, query_points=query_points)
    finally:
        for hook in hooks:
            hook.remove()
    if missing := [name for name in layers if name not in reached]:
        raise ValueError(f"{len(missing)} INT8 layers were never called with these images, the first is {missing[0]}")
    return {name: difference.sqnr_db for name, difference in found.items()}
