"""How far a result is from the expected one: relative error, largest error, cosine similarity, SQNR.

The only place where these are computed, for the package, its benchmarks and its tests. Relative error **and** largest
error show what cosine similarity hides: twice the expected result has a cosine of 1.

    relative error   ||got - want|| / ||want||, Euclidean norms over all values; dimensionless
    max_abs          max |got - want|, mean_abs: mean |got - want|; in the unit of the values
    relative_max     max |got - want| / max |want|, dimensionless
    cosine           <got, want> / (||got|| ||want||)
    sqnr_db          signal-to-quantization-noise ratio, 10 log10(sum want^2 / sum (got - want)^2), in decibels

Sums are computed in fp64, in pieces, so that large outputs need no copy. NaN propagates to every measure.
"""

import math

from torch import Tensor

_PIECE = 1 << 22  # values that are looked at at a time: 32 MB in fp64


class Difference:
    """The measures over all pairs of tensors that were added."""

    def __init__(self) -> None:
        self._count = 0
        self._noise = self._signal = self._power = self._product = 0.0  # sums of squares, and of got x want
        self._sum_abs = self._largest = self.max_abs = 0.0

    def add(self, got: Tensor, want: Tensor) -> "Difference":
        """Add two tensors of one shape, of any dtype and device; computed on the device of `got`. Returns itself.

        Raises ValueError if their shapes differ.
        """
        if got.shape != want.shape:
            raise ValueError(f"shapes differ: {list(got.shape)} is compared with {list(want.shape)}")
        pieces = (tensor.detach().reshape(-1).split(_PIECE) for tensor in (got, want))
        for a, b in zip(*pieces, strict=True):
            self._add(a.double(), b.to(a.device).double())
        return self

    def _add(self, got: Tensor, want: Tensor) -> None:
        if not got.numel():
            return
        error = got - want
        self._count += error.numel()
        self._noise += error.square().sum().item()
        self._signal += want.square().sum().item()
        self._power += got.square().sum().item()
        self._product += (got @ want).item()
        self._sum_abs += error.abs().sum().item()
        self.max_abs = _larger(self.max_abs, error.abs().max().item())
        self._largest = _larger(self._largest, want.abs().max().item())

    @property
    def relative(self) -> float:
        """0 if both are zero, infinite if only `want` is."""
        return math.sqrt(_ratio(self._noise, self._signal))

    @property
    def relative_max(self) -> float:
        """0 if both are zero, infinite if only `want` is."""
        return _ratio(self.max_abs, self._largest)

    @property
    def mean_abs(self) -> float:
        return self._sum_abs / max(1, self._count)

    @property
    def cosine(self) -> float:
        """1 if both are zero, 0 if one of them is."""
        norms = math.sqrt(self._signal) * math.sqrt(self._power)
        return self._product / norms if norms else float(self._signal == self._power == 0)

    @property
    def sqnr_db(self) -> float:
        """Infinite if both are equal, -infinite if only `want` is zero."""
        ratio = self._signal / self._noise if self._noise else math.inf
        return 10 * math.log10(ratio) if ratio else -math.inf


def relative_error(got: Tensor, want: Tensor) -> float:
    """||got - want|| / ||want|| of two tensors of one shape; see `Difference`."""
    return Difference().add(got, want).relative


def _ratio(error: float, size: float) -> float:
    if size:
        return error / size
    return math.inf if error else 0.0


def _larger(a: float, b: float) -> float:
    """The larger of two values; NaN if either is."""
    return b if b != b or b > a else a
