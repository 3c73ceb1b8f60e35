"""Recovers the factors that smoothing folded into a quantized model, by comparing it with the float model.

A checkpoint does not contain the factors, since calls do not need them. They are needed to put a single INT8 layer into
the float model, since its inputs, and its outputs if they are values, are divided by them.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from vggt_int8.quant.linear import Int8Linear
from vggt_int8.quant.seams import Seam, seams_between
from vggt_int8.quant.smoothing import Fold, Folds
from vggt_int8.quant.storage import rotated

_SAME = 2.0**-9  # parameters that differ by less were only rounded to fp16, perhaps twice
_ALIKE = 2.0**-6  # the same for factors of rows that are estimated from INT8 weights


def folds_between(model: nn.Module, quantized: nn.Module) -> Folds:
    """Factors by name of the linear, for its columns and its rows; linears without factors are left out.

    Columns after a LayerNorm are exact up to the rounding of the LayerNorm to fp16. Value rows are the best fit over
    all weights of a row, whose rounding errors average out (to about 1e-3 / sqrt(inputs)).
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
    """[K] fp64; None if the LayerNorm is the same in both models."""
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
    """[K] fp64; None if the value rows are the same in both models, judged by their biases, or by their weights without
    biases.
    """
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
