"""Cameras as COLMAP has them: a model of lens, and its parameters."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggt_int8.plain_data import shown

Doubles = NDArray[np.float64]
# Name and number of parameters, in the order of the model ids in binary files.
MODELS = (
    *(("SIMPLE_PINHOLE", 3), ("PINHOLE", 4), ("SIMPLE_RADIAL", 4), ("RADIAL", 5), ("OPENCV", 8)),
    *(("OPENCV_FISHEYE", 8), ("FULL_OPENCV", 12), ("FOV", 5), ("SIMPLE_RADIAL_FISHEYE", 4)),
    *(("RADIAL_FISHEYE", 5), ("THIN_PRISM_FISHEYE", 12), ("RAD_TAN_THIN_PRISM_FISHEYE", 16)),
    *(("SIMPLE_DIVISION", 4), ("DIVISION", 5), ("SIMPLE_FISHEYE", 3), ("FISHEYE", 4), ("EUCM", 6)),
    ("EQUIRECTANGULAR", 2),
)
_PARAMETERS = dict(MODELS)
# Number of focal lengths of the models that are a pinhole if all that follows the principal point is 0.
_FOCALS = dict.fromkeys(("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "SIMPLE_DIVISION"), 1)
_FOCALS |= dict.fromkeys(("PINHOLE", "OPENCV", "FULL_OPENCV", "DIVISION"), 2)


class ModelError(ValueError):
    """A model that cannot be read. The message names the file."""


@dataclass(frozen=True)
class Camera:
    """size (H, W) pixels; parameters in COLMAP's order, in pixels whose first one is centred on (0.5, 0.5).

    Raises `ModelError` for an unknown model, and for parameters that are not its own.
    """

    model: str
    size: tuple[int, int]
    parameters: Doubles

    def __post_init__(self) -> None:
        count, values, (height, width) = _PARAMETERS.get(self.model), self.parameters, self.size
        if count is None:
            raise ModelError(f"camera model {shown(self.model)} is not known; known are {', '.join(_PARAMETERS)}")
        if len(values) != count or not np.isfinite(values).all() or values[0] <= 0 or min(self.size) < 1:
            raise ModelError(
                f"{self.model} of {width} x {height} pixels has parameters {shown(list(values))}: {count} are needed"
            )

    @property
    def is_pinhole(self) -> bool:
        focals = _FOCALS.get(self.model)
        return focals is not None and not self.parameters[focals + 2 :].any()

    def intrinsic(self) -> Tensor:
        """[3, 3] fp32 of a pinhole camera. Raises `ModelError` for lenses that bend lines, whose images must be
        undistorted first.
        """
        if not self.is_pinhole:
            raise ModelError(
                f"cameras of model {self.model} bend lines: undistort the images first (colmap image_undistorter)"
            )
        *focal, cx, cy = self.parameters[: _FOCALS[self.model] + 2].tolist()
        return torch.tensor([[focal[0], 0, cx], [0, focal[-1], cy], [0, 0, 1]], dtype=torch.float32)
