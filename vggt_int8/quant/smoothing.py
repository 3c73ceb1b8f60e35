"""Smoothing: what is large in one channel of a linear's inputs is shared with the columns of its weight.

Rounding to INT8 knows one scale per row of the inputs and one per row of the weight. Where one channel is far above the
others in either, the others lose their digits. A factor per channel moves size from one to the other and is folded into
stored tensors (`seams.py` says where that is exact), so a call does nothing for it:

    f_j = x_j^strength / w_j^(1 - strength)        writer / f, columns of the reader * f

x_j: root mean square of input channel j, over calibration tokens, or estimated without data from the parameters of what
writes it. w_j: root mean square of column j of the weight. (Xiao et al., "SmoothQuant", 2022, has largest values in
their place.) Mean squares are what the error of a product of two rounded and *rotated* rows goes by: both scales are
proportional to the norms of x / f and w * f then, and the product of the norms is least at f_j = sqrt(x_j / w_j), which
is strength 0.5. Without rotation they measure better as well (benchmarks/NOTES.md, "Smoothing").

Factors are not rounded to powers of two, which would cost 0.3 to 1 dB: folded parameters are rounded to fp16 once more,
70 dB below, and INT8 weights to what they are rounded to anyway.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vggt_int8.quant.masked_bias import added_bias
from vggt_int8.quant.seams import Seam

TensorOf = Callable[[str], Tensor]  # name of a parameter -> its floats
_SPREAD = 2.0**-12  # what is smaller than this share of the largest channel counts as that
# What is written stays this far inside of fp16, in which LayerNorm and biases are stored.
_LARGEST_WRITTEN, _SMALLEST_WRITTEN = 2.0**14, 2.0**-10
_FP64_AT_ONCE = 1 << 19  # values of a weight that are summed at once


@dataclass(frozen=True)
class Fold:
    """What the floats of one module are multiplied with: `rows` [N] weight and bias, `columns` [K] the weight. fp64."""

    rows: Tensor | None = None
    columns: Tensor | None = None

    def apply(self, key: str, tensor: Tensor) -> Tensor:
        """The parameter `key` ("weight" or "bias"; [N, K] or [N]) folded, in fp32, or in fp64 if it is that."""
        result = tensor.detach() if tensor.dtype == torch.float64 else tensor.detach().float()
        for factor, axis in ((self.rows, 0), (self.columns, 1)):
            if factor is not None and axis < max(1, tensor.ndim if key == "weight" else 1):
                result = result * factor.to(result).view([-1 if i == axis else 1 for i in range(result.ndim)])
        return result


Folds = dict[str, Fold]  # by the name of the module


def factors(inputs: Tensor, columns: Tensor, strength: float) -> Tensor:
    """f of the module's text, fp64 [K], from the sizes of input channels and of columns of the weight, [K] each.

    They leave the largest of `inputs` as it is, so that no fp16 overflows that did not before. All 1 where sizes say
    nothing: they are all zero, or not finite (as those of a damaged weight, which is refused elsewhere).
    """
    x, w = (_spread(sizes.double()) for sizes in (inputs, columns))
    if x is None or w is None:
        return torch.ones_like(inputs, dtype=torch.float64)
    f = x**strength / w ** (1 - strength)
    return f * ((x / f).max() / x.max())


def _spread(sizes: Tensor) -> Tensor | None:
    largest = sizes.max()
    return sizes.clamp_min(largest * _SPREAD) if largest.isfinite() and largest > 0 else None


def column_sizes(weight: Tensor) -> Tensor:
    """Root mean square of each column of a weight [N, K] -> [K], in the dtype of `settled`."""
    total = sum(part.double().square().sum(0) for part in _rows_at_a_time(weight))
    assert isinstance(total, Tensor)
    return settled((total / len(weight)).sqrt(), weight.dtype)


def settled(sums: Tensor, dtype: torch.dtype) -> Tensor:
    """What sums in fp64 say of parameters of `dtype`: rounded to fp32, unless those are fp64 themselves.

    How a sum is associated depends on strides, on the number of threads and on the CPU: BLAS, for one, starts where
    memory is aligned. In fp64 only last digits differ, which rounding to fp32 takes away, so factors are the same
    whether weights are in place or stream by.
    """
    return sums if dtype == torch.float64 else sums.float()


def _rows_at_a_time(weight: Tensor) -> tuple[Tensor, ...]:
    """Parts of a weight [N, K] of which copies in fp64 take some megabytes."""
    return weight.detach().split(max(1, _FP64_AT_ONCE // max(1, weight.shape[1])))


def estimated_inputs(seam: Seam, tensor_of: TensorOf) -> Tensor:
    """Root mean square of the input channels of a seam's reader, [K], by the parameters of what writes them alone.

    For LayerNorm as if what it normalises had mean 0 and variance 1 in every channel, and no two were correlated:
    sqrt(weight^2 + bias^2). For values as if every token attended to itself alone.
    """
    scale, shift = (_floats(tensor_of(f"{seam.norm}.{key}")) for key in ("weight", "bias"))
    if not seam.values:
        return (scale.square() + shift.square()).sqrt()
    weight, bias = _value_rows(seam, tensor_of)
    scale, shift = scale.double(), shift.double()
    parts = [_around_and_mean(part.double(), scale, shift) for part in _rows_at_a_time(weight)]
    around, mean = (torch.cat(sums) for sums in zip(*parts, strict=True))
    mean = mean if bias is None else mean + bias
    return settled((around + mean.square()).sqrt(), weight.dtype)


def _around_and_mean(rows: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Of the products of rows [N, K] with inputs of this spread and mean, [K]: variance and mean, [N]."""
    return (rows * scale).square().sum(1), (rows * shift).sum(1)


def estimated_folds(seams: Iterable[Seam], tensor_of: TensorOf, strength: float = 0.5) -> Folds:
    """Folds for all seams from the model's parameters alone, without data."""
    folds: Folds = {}
    for seam in seams:
        inputs = estimated_inputs(seam, tensor_of)
        add_seam(folds, seam, factors(inputs, column_sizes(tensor_of(f"{seam.reader}.weight")), strength), tensor_of)
    return folds


def add_seam(folds: Folds, seam: Seam, f: Tensor, tensor_of: TensorOf) -> None:
    """Add to `folds` what factors f [K] of a seam mean for its writer and its reader."""
    f = within_fp16(f, written_sizes(seam, tensor_of))
    rows = 1 / f
    if seam.values:  # queries and keys stay
        rows = torch.cat([torch.ones_like(f).repeat(2), rows])
    folds[seam.writer] = replace(folds.get(seam.writer, Fold()), rows=rows)
    folds[seam.reader] = replace(folds.get(seam.reader, Fold()), columns=f)


def written_sizes(seam: Seam, tensor_of: TensorOf) -> Tensor:
    """The largest stored number [K] that is divided by each factor of a seam."""
    if seam.values:
        weight, bias = _value_rows(seam, tensor_of)
        largest = weight.abs().amax(1)
        return largest if bias is None else largest.maximum(bias.abs())
    return torch.stack([_floats(tensor_of(f"{seam.norm}.{key}")).abs() for key in ("weight", "bias")]).amax(0)


def within_fp16(f: Tensor, written: Tensor) -> Tensor:
    """Factors that keep what they divide, of these sizes [K], where fp16 has all its digits."""
    written = written.to(f)
    usable = written.isfinite() & (written > 0)
    return torch.where(usable, f.clamp(written / _LARGEST_WRITTEN, written / _SMALLEST_WRITTEN), f)


def _value_rows(seam: Seam, tensor_of: TensorOf) -> tuple[Tensor, Tensor | None]:
    """Weight [K, C] and bias [K] of the values, the last third of the outputs."""
    weight = _floats(tensor_of(f"{seam.values}.weight"))
    start = len(weight) // 3 * 2
    try:
        bias = tensor_of(f"{seam.values}.bias")
    except KeyError:
        return weight[start:], None
    return weight[start:], _floats(bias)[start:]


def _floats(tensor: Tensor) -> Tensor:
    return tensor.detach() if tensor.dtype == torch.float64 else tensor.detach().float()


def parameters_of(model: nn.Module) -> TensorOf:
    """Parameters of a model by name; KeyError for one that is not there."""
    return dict(model.named_parameters(remove_duplicate=False)).__getitem__


def folded_linear(layer: nn.Linear, fold: Fold) -> nn.Linear:
    """A copy of the layer with its parameters folded, as of `Fold.apply`."""
    bias = added_bias(layer)
    copy = nn.Linear(layer.in_features, layer.out_features, bias is not None, device="meta").train(layer.training)
    for key, tensor in {"weight": layer.weight, "bias": bias}.items():
        if tensor is not None:
            setattr(copy, key, nn.Parameter(fold.apply(key, tensor.detach()), requires_grad=False))
    return copy


def fold_(model: nn.Module, folds: Mapping[str, Fold]) -> None:
    """Fold into a float model in place; its function stays, but for rounding. Parameters keep their dtype."""
    with torch.no_grad():
        for name, fold in folds.items():
            layer = model.get_submodule(name)
            for key, tensor in layer.named_parameters(recurse=False):
                tensor.copy_(fold.apply(key, tensor))
