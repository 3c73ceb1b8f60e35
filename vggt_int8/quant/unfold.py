"""What smoothing has folded into a quantized model, read off its parameters beside those of the model in floats.

Factors are nowhere in a checkpoint: nothing needs them in a call. Who puts one INT8 layer in the place of a float layer
does, since its inputs are divided by them, and its outputs if they are values.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from vggt_int8.quant.linear import Int8Linear
from vggt_int8.quant.seams import Seam, seams_between
from vggt_int8.quant.smoothing import Fold, Folds
from vggt_int8.quant.storage import rotated

_SAME = 2.0**-9  # parameters that differ by less were rounded to fp16, perhaps twice, and not folded
_ALIKE = 2.0**-6  # as well, factors of rows that are known from INT8 weights alone


def folds_between(model: nn.Module, quantized: nn.Module) -> Folds:
    """By the name of each linear: what its columns were multiplied with, and its rows; without those that were not.

    Exact to the rounding of a LayerNorm in fp16 for columns behind one. For value rows the best fit to all weights of a
    row, whose rounding errors are small in the mean (about 1e-3 / sqrt(inputs)).
    """
    folds: Folds = {}
    seams = seams_between(model, quantized)
    for seam in sorted(seams, key=lambda seam: bool(seam.values)):  # the columns of qkv are known before its rows
        f = _values_factors(model, quantized, seam, folds) if seam.values else _norm_factors(model, quantized, seam)
        if f is None:
            continue
        folds[seam.reader] = replace(folds.get(seam.reader, Fold()), columns=f)
        if seam.values:
            rows = torch.cat([torch.ones_like(f).repeat(2), 1 / f])
            folds[seam.values] = replace(folds.get(seam.values, Fold()), rows=rows)
    return folds


def _norm_factors(model: nn.Module, quantized: nn.Module, seam: Seam) -> Tensor | None:
    """[K] fp64; None if the LayerNorm is the same."""
    before, after = (
        torch.stack([m.get_parameter(f"{seam.norm}.{key}").detach().double() for key in ("weight", "bias")])
        for m in (model, quantized)
    )
    if _same(before, after):
        return None
    larger = before.abs().argmax(0, keepdim=True)
    before, after = before.gather(0, larger)[0], after.gather(0, larger)[0]
    return torch.where((before != 0) & (after != 0), before / after, 1.0)


def _values_factors(model: nn.Module, quantized: nn.Module, seam: Seam, folds: Folds) -> Tensor | None:
    """[K] fp64; None if the value rows are the same: by their biases, or without any by their weights."""
    source, layer = model.get_submodule(seam.values), quantized.get_submodule(seam.values)
    assert isinstance(source, nn.Linear)
    start = len(source.weight) // 3 * 2
    has_bias = source.bias is not None and bool(source.bias[start:].any())
    if has_bias and _same(*(owner.get_parameter("bias").detach()[start:].double() for owner in (source, layer))):
        return None
    rows = source.weight.detach()[start:].double()
    columns = folds.get(seam.values, Fold()).columns
    rows = rows if columns is None else rows * columns
    found = _floats(layer)[start:].double()
    alike = (rows * found).sum(1)
    f = torch.where(alike > 0, rows.square().sum(1) / alike, 1.0)
    return None if not has_bias and bool(((f - 1).abs() < _ALIKE).all()) else f


def _same(before: Tensor, after: Tensor) -> bool:
    return bool(((before - after).abs() <= _SAME * before.abs() + torch.finfo(torch.float16).tiny).all())


def _floats(layer: nn.Module) -> Tensor:
    """The weight [N, K] that a linear computes with, not rotated."""
    if not isinstance(layer, Int8Linear):
        return layer.get_parameter("weight").detach()
    weight = layer.codes.float() * layer.weight_scale
    return rotated(weight, layer.rotation)
