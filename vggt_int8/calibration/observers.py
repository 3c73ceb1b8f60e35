"""Observers: what is recorded of a layer's inputs, and the range [-r, r] that its static scale, r / 127, covers.

    minmax       the largest value
    percentile   the range that all values but a share of `BEYOND` stay within
    histogram    the range for which rounding and clipping together have the least squared error of the input
    mse          the same for the layer's output, approximated by its columns' norms; searched on some rows of each call
    per_channel  the largest value after all channels were given the same range by factors that are folded into the
                 layer and into the module that writes its input, where that is exact (`scales.channel_folds`)

All results follow from counts and maxima, or from sums in the order of the calls, so they are reproducible.

torchao's own observers do not fit: their symmetric scale is range / 127.5, whose codes differ; its MSE observer forgets
everything before the last batch; none distinguishes two kinds of tokens (`tests/calibration/test_torchao.py` shows the
first two).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from vggt_int8.kernels.reference import CODE_MAX
from vggt_int8.quant.storage import rotated

# Bins of |x|: fp32 truncated to its upper 16 bits, so the relative width of a bin is 1/128.
MANTISSA_BITS = 7
_BINS = 0x7F80  # positive finite numbers of that kind
BEYOND = 1e-5  # of all values, what `percentile` leaves beyond its range
_STEPS, _OCTAVES = 16, 6  # ranges tried in each octave below the largest value, and how many octaves
_ROWS = 256  # of each call, and of tokens of a kind, that `mse` searches on
_AT_ONCE = 1 << 22  # values that it rounds at once


class CalibrationError(ValueError):
    """Images or a network for which no ranges can be found. The message says what is wrong, and what to do."""


class Observer(ABC):
    """Sees the inputs of one layer, or of one kind of its tokens, call after call.

    passes: how often it needs to see all calls, in the same order.
    rows: number of rows seen in the first pass.
    """

    passes = 1

    def __init__(self) -> None:
        self.rows = 0
        self.absmax = 0.0
        self.number = 0  # of the pass

    def start(self, number: int) -> None:
        """Called at the start of pass `number`, counted from 0."""
        self.number = number

    def add(self, x: Tensor) -> None:
        """x [rows, K] fp32, of one call. Raises `CalibrationError` for NaN and inf."""
        if self.number:
            if self.number < self.passes:
                self._see(x)
            return
        largest = x.abs().amax().item()
        if not math.isfinite(largest):
            raise CalibrationError("its input holds NaN or inf")
        self.rows += len(x)
        self.absmax = max(self.absmax, largest)
        self._see(x)

    @abstractmethod
    def _see(self, x: Tensor) -> None:
        """Record what is needed of x."""

    @abstractmethod
    def range(self) -> float:
        """The range that the scale covers, after the last pass."""


class MinMax(Observer):
    def _see(self, x: Tensor) -> None:
        pass

    def range(self) -> float:
        return self.absmax


class PerChannel(Observer):
    """channels: [K] fp32, the largest value of each channel; None before the first call."""

    def __init__(self) -> None:
        super().__init__()
        self.channels: Tensor | None = None

    def _see(self, x: Tensor) -> None:
        largest = x.abs().amax(dim=0)
        self.channels = largest if self.channels is None else torch.maximum(self.channels, largest)

    def range(self) -> float:
        return self.absmax


class _Counts(Observer):
    """Counts of |x| in bins of constant relative width. Integer sums do not depend on their order."""

    def __init__(self) -> None:
        super().__init__()
        # [bins], allocated before any call: a long-lived tensor between the temporaries of calls would fragment the
        # heap.
        self.counts = torch.zeros(_BINS, dtype=torch.int64)

    def _see(self, x: Tensor) -> None:
        bins = x.abs().contiguous().view(torch.int32) >> (23 - MANTISSA_BITS)
        self.counts += torch.bincount(bins.view(-1), minlength=_BINS).cpu()

    def _filled(self) -> tuple[Tensor, Tensor, Tensor]:
        """Counts, centers and widths of the bins that are not empty, float64, in ascending order."""
        number = self.counts.nonzero().view(-1)
        edges = torch.stack([number, number + 1]).to(torch.int32) << (23 - MANTISSA_BITS)
        low, high = edges.view(torch.float32).double()
        return self.counts[number].double(), (low + high) / 2, high - low


class Percentile(_Counts):
    def range(self) -> float:
        counts, middle, width = self._filled()
        within = counts.cumsum(0) >= (1 - BEYOND) * counts.sum()
        bin_ = int(within.nonzero()[0])
        return min(self.absmax, float(middle[bin_] + width[bin_] / 2))


class Histogram(_Counts):
    def range(self) -> float:
        counts, middle, width = self._filled()
        ranges = [self.absmax * factor for factor in candidates()]
        errors = [float((counts * squared_error(middle, width, r)).sum()) for r in ranges]
        return ranges[errors.index(min(errors))]


def candidates() -> list[float]:
    """Ranges to try, relative to the largest value, which comes first."""
    return [2.0 ** (-step / _STEPS) for step in range(_STEPS * _OCTAVES)]


def squared_error(middle: Tensor, width: Tensor, clip: float) -> Tensor:
    """Squared error of quantizing values around `middle`, spread over `width`, with the scale `clip / 127`: float64
    like these.

    A bin at least an eighth of a step wide holds values with any remainder: a twelfth of the step's square.
    """
    step = clip / CODE_MAX
    codes = (middle / step).round().clamp(max=CODE_MAX)
    exact = (middle - codes * step).square()
    return torch.where((width > step / 8) & (middle < clip), step**2 / 12, exact)


class MeanSquaredError(Observer):
    """weights: [K] fp32, the weight of each channel's error: the squared norm of the layer's column."""

    passes = 2

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = weights
        self.errors = torch.zeros(_STEPS * _OCTAVES, dtype=torch.float64)

    def _see(self, x: Tensor) -> None:
        if self.number == 0:  # the largest value decides which ranges are tried
            return
        some = x[:: max(1, math.ceil(len(x) / _ROWS))]
        scales = some.new_tensor(candidates()).view(-1, 1, 1) * (self.absmax / CODE_MAX)
        errors = []
        for part in scales.split(max(1, _AT_ONCE // some.numel())):
            rounded = (some / part).round_().clamp_(-CODE_MAX, CODE_MAX).mul_(part)
            errors.append(rounded.sub_(some).square_().sum(dim=1).double() @ self.weights.double())
        self.errors += torch.cat(errors).cpu()

    def range(self) -> float:
        return self.absmax * candidates()[int(self.errors.argmin())]


def observer_for(kind: str, weight: Callable[[], Tensor], rotation: int) -> Callable[[], Observer]:
    """A factory for a layer's observers.

    kind: one of `recipe.scheme.OBSERVERS`.
    weight: returns the layer's weight, [N, K] float. It is called only if needed, since a folded weight is a copy.
    rotation: group size of the layer's rotation, 0 for none.
    """
    if kind == "mse":
        weights = rotated(weight(), rotation).float().square().sum(dim=0)
        return lambda: MeanSquaredError(weights)
    return {"minmax": MinMax, "percentile": Percentile, "histogram": Histogram, "per_channel": PerChannel}[kind]
