"""Smoothing: balances large input channels of a linear against the columns of its weight.

INT8 rounding uses one scale per row of the inputs and one per row of the weight. If one channel is far larger than the
others in either, the others lose precision. A factor per channel moves magnitude from one to the other and is folded
into stored tensors (`seams.py` says where that is exact), at no cost in a call:

    f_j = x_j^strength / w_j^(1 - strength)        writer / f, columns of the reader * f

Here x_j is the root mean square of input channel j over calibration tokens, or estimated without data from the
parameters of the module that writes it, and w_j that of column j of the weight. (Xiao et al., "SmoothQuant", 2022, use
maxima instead.) For two rounded and *rotated* rows, the error of their product follows mean squares: both scales are
then proportional to the norms of x / f and w * f, and the product of these norms is smallest at
f_j = sqrt(x_j / w_j), which is strength 0.5. They also measure better without rotation (benchmarks/NOTES.md,
"Smoothing").

Factors are not rounded to powers of two, which would cost 0.3 to 1 dB. Folded parameters are rounded to fp16 once more,
at -70 dB, and INT8 weights are rounded anyway.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vggt_int8.quant.masked_bias import added_bias
from vggt_int8.quant.seams import Seam

TensorOf = Callable[[str], Tensor]  # name of a parameter -> its floats
_SPREAD = 2.0**-12  # smallest size of a channel, relative to the largest; smaller ones are clamped
# Folded parameters stay within these bounds, well inside fp16, the dtype in which LayerNorms and biases are stored.
_LARGEST_WRITTEN, _SMALLEST_WRITTEN = 2.0**14, 2.0**-10
_FP64_AT_ONCE = 1 << 19  # values of a weight that are summed at once


@dataclass(frozen=True)
class Fold:
    """Factors for the floats of one module, fp64: `rows` [N] multiply weight and bias, `columns` [K] the weight."""

    rows: Tensor | None = None
    columns: Tensor | None = None

    def apply(self, key: str, tensor: Tensor) -> Tensor:
        """The parameter `key` ("weight" or "bias"; [N, K] or [N]) with the factors applied, in fp32, or in fp64 if it
        is fp64.
        """
        result = tensor.detach() if tensor.dtype == torch.float64 else tensor.detach().float()
        for factor, axis in ((self.rows, 0), (self.columns, 1)):
            if factor is not None and axis < max(1, tensor.ndim if key == "weight" else 1):
                result = result * factor.to(result).view([-1 if i == axis else 1 for i in range(result.ndim)])
        return result


Folds = dict[str, Fold]  # by the name of the module


def factors(inputs: Tensor, columns: Tensor, strength: float) -> Tensor:
    """The factors f of the module docstring, fp64 [K], from the sizes of input channels and of weight columns, [K]
    each.

    They are scaled to leave the largest of `inputs` unchanged, so that no fp16 value overflows that did not before. All
    are 1 if the sizes are all zero or not finite (a corrupted weight, which is refused elsewhere).
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
    """Sums in fp64 over parameters of `dtype`, rounded to fp32 unless the parameters are fp64.

    The order of a sum depends on strides, the number of threads and the CPU (BLAS starts at aligned addresses, for
    example). In fp64 only the last digits differ, and rounding to fp32 removes them, so factors are the same whether
    weights are in memory or streamed.
    """
    return sums if dtype == torch.float64 else sums.float()


def _rows_at_a_time(weight: Tensor) -> tuple[Tensor, ...]:
    """Parts of a weight [N, K] whose fp64 copies take a few megabytes."""
    return weight.detach().split(max(1, _FP64_AT_ONCE // max(1, weight.shape[1])))


def estimated_inputs(seam: Seam, tensor_of: TensorOf) -> Tensor:
    """Root mean square of the input channels of a seam's reader, [K], estimated from the parameters of the writer.

    For LayerNorm, this assumes normalized inputs with mean 0 and variance 1 in every channel and no correlation:
    sqrt(weight^2 + bias^2). For values, it assumes that every token attends only to itself.
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
    """Variance and mean, [N], of the products of rows [N, K] with inputs of this standard deviation and mean, [K]."""
    return (rows * scale).square().sum(1), (rows * shift).sum(1)


def estimated_folds(seams: Iterable[Seam], tensor_of: TensorOf, strength: float = 0.5) -> Folds:
    """Folds for all seams from the model's parameters only, without data."""
    folds: Folds = {}
    for seam in seams:
        inputs = estimated_inputs(seam, tensor_of)
        add_seam(folds, seam, factors(inputs, column_sizes(tensor_of(f"{seam.reader}.weight")), strength), tensor_of)
    return folds


def add_seam(folds: Folds, seam: Seam, f: Tensor, tensor_of: TensorOf) -> None:
    """Add the effect of a seam's factors f [K] on its writer and reader to `folds`."""
    f = within_fp16(f, written_sizes(seam, tensor_of))
    rows = 1 / f
    if seam.values:  # queries and keys stay
        rows = torch.cat([torch.ones_like(f).repeat(2), rows])
    folds[seam.writer] = replace(folds.get(seam.writer, Fold()), rows=rows)
    folds[seam.reader] = replace(folds.get(seam.reader, Fold()), columns=f)


def written_sizes(seam: Seam, tensor_of: TensorOf) -> Tensor:
    """The largest stored number [K] that each factor of a seam divides."""
    if seam.values:
        weight, bias = _value_rows(seam, tensor_of)
        largest = weight.abs().amax(1)
        return largest if bias is None else largest.maximum(bias.abs())
    return torch.stack([_floats(tensor_of(f"{seam.norm}.{key}")).abs() for key in ("weight", "bias")]).amax(0)


def within_fp16(f: Tensor, written: Tensor) -> Tensor:
    """Clamp factors so that the numbers they divide, of these sizes [K], stay in fp16's range of full precision."""
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
    """A lookup of a model's parameters by name; raises KeyError for unknown names."""
    return dict(model.named_parameters(remove_duplicate=False)).__getitem__


def folded_linear(layer: nn.Linear, fold: Fold) -> nn.Linear:
    """A copy of the layer with folded parameters, as from `Fold.apply`."""
    bias = added_bias(layer)
    copy = nn.Linear(layer.in_features, layer.out_features, bias is not None, device="meta").train(layer.training)
    for key, tensor in {"weight": layer.weight, "bias": bias}.items():
        if tensor is not None:
            setattr(copy, key, nn.Parameter(fold.apply(key, tensor.detach()), requires_grad=False))
    return copy


def fold_(model: nn.Module, folds: Mapping[str, Fold]) -> None:
    """Fold factors into a float model in place, which keeps its function up to rounding. Parameters keep their
    dtype.
    """
    with torch.no_grad():
        for name, fold in folds.items():
            layer = model.get_submodule(name)
            for key, tensor in layer.named_parameters(recurse=False):
                tensor.copy_(fold.apply(key, tensor))
