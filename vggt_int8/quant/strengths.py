"""How strongly to smooth a seam: what its reader sees on calibration images, and the strength that suits it best.

The strength is searched for every seam by itself. A candidate's error is that of the reader's output, computed as INT8
will compute it (weight and inputs rounded, rotated if the layer is), on some rows of its real inputs, so that what
matters little there may be rounded coarsely. The grid holds "not at all" as well.
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
ROWS = 256  # at least so many rows of a reader's inputs are kept, where there are as many, and less than twice as many


class InputSample:
    """Sizes of a linear's input channels over all rows that it was shown, and some of these rows, evenly spread."""

    def __init__(self) -> None:
        self.count = 0
        self._squares: Tensor | None = None
        self._rows: list[Tensor] = []
        self._stride = 1

    def add(self, x: Tensor) -> None:
        """x [rows, K] float, finite. What is kept depends on the order of the rows, and not on how they are parted."""
        squares = x.double().square().sum(0)
        self._squares = squares if self._squares is None else self._squares + squares
        first = -self.count % self._stride
        self._rows += list(x[first :: self._stride].float().clone())
        self.count += len(x)
        while len(self._rows) >= 2 * ROWS:
            self._rows = [row.clone() for row in self._rows[::2]]
            self._stride *= 2

    @property
    def sizes(self) -> Tensor:
        """Root mean square of each channel, fp64 [K]. Raises ValueError if nothing was added."""
        if self._squares is None:
            raise ValueError("no input was seen, so that its channels have no size")
        return (self._squares / self.count).sqrt()

    @property
    def rows(self) -> Tensor:
        """[R, K] fp32, in the order in which they came."""
        return torch.stack(self._rows)


def output_error(weight: Tensor, x: Tensor, f: Tensor, scheme: Scheme) -> float:
    """Sum of squares of what rounding changes in `x @ weight.T` if columns are multiplied with f, and inputs divided.

    weight [N, K], x [R, K], f [K]. A static scale is taken to cover these rows.
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
    """Factors [K] of a reader's inputs, and the strength that gave them: the one asked for, or for "search" the best.

    A strength of 0 stands for factors of 1.
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
    """Folds for all seams, whose readers have these schemes and saw these samples, and the strength at each reader."""
    folds: Folds = {}
    strengths = {}
    for seam, scheme in seams.items():
        weight = tensor_of(f"{seam.reader}.weight").detach()
        f, strengths[seam.reader] = seam_factors(weight, samples[seam.reader], scheme, strength)
        add_seam(folds, seam, f, tensor_of)
    return folds, strengths
