"""Cameras of photographs that are stored turned, with an EXIF orientation.

COLMAP's cameras are of the pixels as they are stored, and images are read upright: so the camera is turned about its
axis with its image.
"""

from dataclasses import replace

import numpy as np
import torch

from vggt_int8.data.camera import Camera, ModelError
from vggt_int8.data.colmap import PosedImage
from vggt_int8.plain_data import shown

# EXIF orientation -> (x, y) upright from (x, y) stored, both from the image's middle. The others mirror.
_TURNS = {3: ((-1, 0), (0, -1)), 6: ((0, -1), (1, 0)), 8: ((0, 1), (-1, 0))}


def turned_upright(image: PosedImage, camera: Camera, orientation: int) -> tuple[PosedImage, Camera]:
    """An image and its pinhole camera as stored -> as it is read, with the EXIF orientation (1 to 8) applied.

    Raises `ModelError` for an image that is stored mirrored, which no camera sees, and as `Camera.intrinsic`.
    """
    if orientation == 1:
        return image, camera
    if orientation not in _TURNS:
        raise ModelError(
            f"{shown(image.name)} is stored mirrored (EXIF orientation {orientation}), which no camera is: remove the "
            "orientation from the file"
        )
    turn = np.array(_TURNS[orientation], dtype=np.float64)
    stored = camera.intrinsic().double().numpy()
    half = np.array(camera.size[::-1]) / 2
    middle = turn @ (stored[:2, 2] - half) + np.abs(turn) @ half
    height, width = camera.size if orientation == 3 else camera.size[::-1]
    parameters = np.array([*(np.abs(turn) @ stored[[0, 1], [0, 1]]), *middle])
    rotation = torch.eye(3, dtype=torch.float64)
    rotation[:2, :2] = torch.from_numpy(turn)
    return replace(image, extrinsic=rotation @ image.extrinsic), Camera("PINHOLE", (height, width), parameters)
