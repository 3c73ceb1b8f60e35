"""Lens distortion: COLMAP's THIN_PRISM_FISHEYE, the model of ETH3D's distorted cameras, and pinhole cameras.

(u, v) = (X / Z, Y / Z)          r = |(u, v)|, theta = atan(r)
(a, b) = (u, v) theta / r        equidistant fisheye without distortion
q = a^2 + b^2                    radial = k1 q + k2 q^2 + k3 q^3 + k4 q^4
a' = a (1 + radial) + 2 p1 a b + p2 (q + 2 a^2) + sx1 q
b' = b (1 + radial) + 2 p2 a b + p1 (q + 2 b^2) + sy1 q
pixel = (fx a' + cx, fy b' + cy)                        parameters: fx fy cx cy k1 k2 p1 p2 k3 k4 sx1 sy1
"""

import numpy as np
from numpy.typing import NDArray

from vggt_int8.data.camera import Camera, ModelError

Doubles = NDArray[np.float64]
FISHEYE = "THIN_PRISM_FISHEYE"
_STEPS, _STEP, _CLOSE = 25, 1e-6, 1e-10


def pixels_to_rays(camera: Camera, pixels: Doubles) -> Doubles:
    """Pixels [N, 2] (x, y; the first pixel's centre is (0.5, 0.5)) -> (X / Z, Y / Z) [N, 2]; NaN outside the lens's
    field of view.

    Raises `ModelError` for other camera models.
    """
    if camera.is_pinhole:
        intrinsic = camera.intrinsic().double().numpy()
        return (pixels - intrinsic[:2, 2]) / intrinsic[[0, 1], [0, 1]]
    if camera.model != FISHEYE:
        raise ModelError(f"cameras of model {camera.model} are not read here; {FISHEYE} and pinholes are")
    bent = (pixels - camera.parameters[2:4]) / camera.parameters[:2]
    plain = _solve(camera.parameters, bent)
    theta = np.hypot(plain[:, 0], plain[:, 1])
    with np.errstate(invalid="ignore", divide="ignore"):
        stretch = np.where(theta > 1e-12, np.tan(theta) / theta, 1.0)
    stretch[~(theta < np.pi / 2)] = np.nan  # behind the camera
    return plain * stretch[:, None]


def rays_to_pixels(camera: Camera, rays: Doubles) -> Doubles:
    """(X / Z, Y / Z) [N, 2] in front of the camera -> pixels [N, 2]. Raises like `pixels_to_rays`."""
    if camera.is_pinhole:
        intrinsic = camera.intrinsic().double().numpy()
        return rays * intrinsic[[0, 1], [0, 1]] + intrinsic[:2, 2]
    if camera.model != FISHEYE:
        raise ModelError(f"cameras of model {camera.model} are not read here; {FISHEYE} and pinholes are")
    r = np.hypot(rays[:, 0], rays[:, 1])
    with np.errstate(invalid="ignore", divide="ignore"):
        shrink = np.where(r > 1e-12, np.arctan(r) / r, 1.0)
    return _bend(camera.parameters, rays * shrink[:, None]) * camera.parameters[:2] + camera.parameters[2:4]


def _bend(parameters: Doubles, points: Doubles) -> Doubles:
    k1, k2, p1, p2, k3, k4, sx1, sy1 = parameters[4:]
    a, b = points.T
    q = a * a + b * b
    grow = 1 + q * (k1 + q * (k2 + q * (k3 + q * k4)))
    x = a * grow + 2 * p1 * a * b + p2 * (q + 2 * a * a) + sx1 * q
    y = b * grow + 2 * p2 * a * b + p1 * (q + 2 * b * b) + sy1 * q
    return np.stack([x, y], axis=-1)


def _solve(parameters: Doubles, bent: Doubles) -> Doubles:
    """Invert `_bend` for `bent` with Newton's method; NaN where it does not converge."""
    points = bent.copy()
    for _ in range(_STEPS):
        miss = _bend(parameters, points) - bent
        if not (np.abs(miss) > _CLOSE).any():
            break
        across, down = (
            (_bend(parameters, points + step) - _bend(parameters, points - step)) / (2 * _STEP)
            for step in (np.array([_STEP, 0]), np.array([0, _STEP]))
        )
        determinant = across[:, 0] * down[:, 1] - across[:, 1] * down[:, 0]
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            dx = (down[:, 1] * miss[:, 0] - down[:, 0] * miss[:, 1]) / determinant
            dy = (across[:, 0] * miss[:, 1] - across[:, 1] * miss[:, 0]) / determinant
        points = points - np.stack([dx, dy], axis=-1)
    with np.errstate(invalid="ignore"):
        found = np.abs(_bend(parameters, points) - bent).max(axis=1) < 1e-6
    points[~found] = np.nan
    return points
