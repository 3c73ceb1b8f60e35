"""Calibrated smoothing: collects a seam's inputs on calibration images and searches its best strength.

Every seam has its own strength. The error of a candidate is that of the reader's output as INT8 will compute it (weight
and inputs rounded, and rotated if the layer is), on a sample of its real inputs, so that errors count by their effect.
The grid includes no smoothing at all.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from vggt_int8.kernels.reference import absmax_scale, quantize_rows, rotate
from vggt_int8.quant.seams import Seam
from vggt_int8.quant.smoothing import Folds, TensorOf, add_seam, column_sizes, factors
from vggt_int8.quant.storage import encode
from vggt_int8.recipe import Scheme

STRENGTHS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
ROWS = 256  # of a reader's inputs in the sample, at least (if there are as many); always fewer than twice as many


class InputSample:
    """Root mean squares of a linear's input channels over all rows it has seen, and an evenly spaced sample of these
    rows.
    """

    def __init__(self) -> None:
        self.count = 0
        self._squares: Tensor | None = None
        self._rows: Tensor | None = None
        self._stride = 1

    def add(self, x: Tensor) -> None:
        """x [rows, K] float, finite. The sample depends on the order of the rows, not on how they are batched."""
        squares = x.double().square().sum(0)
        self._squares = squares if self._squares is None else self._squares + squares
        first = -self.count % self._stride
        taken = x[first :: self._stride].float()
        rows = taken.clone() if self._rows is None else torch.cat([self._rows, taken])
        self.count += len(x)
        while len(rows) >= 2 * ROWS:
            rows = rows[::2].clone()
            self._stride *= 2
        self._rows = rows

    @property
    def sizes(self) -> Tensor:
        """Root mean square of each channel, fp64 [K]. Raises ValueError if nothing was added."""
        if self._squares is None:
            raise ValueError("no input was seen, so that its channels have no size")
        return (self._squares / self.count).sqrt()

    @property
    def rows(self) -> Tensor:
        """[R, K] fp32, in their original order. Raises ValueError if nothing was added."""
        if self._rows is None:
            raise ValueError("no input was seen, so that none of its rows were kept")
        return self._rows


def output_error(weight: Tensor, x: Tensor, f: Tensor, scheme: Scheme) -> float:
    """Sum of squared errors that rounding causes in `x @ weight.T` if columns are multiplied by f and inputs divided by
    f.

    weight [N, K], x [R, K], f [K]. A static scale is assumed to cover these rows.
    """
    f = f.to(x)
    weight = weight.to(x)
    rotation = scheme.rotation_of(len(f))
    codes, scale = encode(weight * f, channel_axis=0, rotation=rotation)
    inputs = x / f
    if scheme.activations == "none":
        inputs = rotate(inputs, rotation) if rotation else inputs
    else:
        static = scheme.activations == "static"
        rotated = rotate(inputs, rotation) if rotation else inputs
        input_codes, input_scale = quantize_rows(rotated, absmax_scale(rotated, dim=(0, 1)) if static else None)
        inputs = input_codes.float() * input_scale
    return (inputs @ (codes.float() * scale).t() - x @ weight.t()).double().square().sum().item()


def seam_factors(weight: Tensor, sample: InputSample, scheme: Scheme, strength: float | str) -> tuple[Tensor, float]:
    """Factors [K] for a reader's inputs, and their strength: the given one, or the best one for "search".

    A strength of 0 means factors of 1.
    """
    sizes, columns = sample.sizes, column_sizes(weight)
    if strength != "search":
        return factors(sizes, columns, float(strength)), float(strength)
    tried = [(torch.ones_like(sizes), 0.0), *((factors(sizes, columns, each), each) for each in STRENGTHS)]
    rows = sample.rows
    return min(tried, key=lambda candidate: output_error(weight, rows, candidate[0], scheme))


def calibrated_folds(
    seams: Mapping[Seam, Scheme], samples: Mapping[str, InputSample], strength: float | str, tensor_of: TensorOf
) -> tuple[Folds, dict[str, float]]:
    """Folds for all seams, from the schemes and input samples of their readers, and the strength used at each
    reader.
    """
    folds: Folds = {}
    strengths = {}
    for seam, scheme in seams.items():
        weight = tensor_of(f"{seam.reader}.weight").detach()
        f, strengths[seam.reader] = seam_factors(weight, samples[seam.reader], scheme, strength)
        add_seam(folds, seam, f, tensor_of)
    return folds, strengths
