"""Sub-pixel matching: looks up in another image a point that depth and cameras predict there.

Around the predicted position, the other image's own depth tells which part of the first image should be seen there, so
that the template has the right shape. It is shifted by up to `REACH` pixels; a parabola through the neighbors of the
best normalized cross-correlation gives the sub-pixel position. Positions without texture, with a bad match, or whose
best match is at the edge of the search window are discarded.
"""

import numpy as np
from numpy.typing import NDArray

from vggt_int8.export.correspond import project
from vggt_int8.scene.scene import Scene

Doubles = NDArray[np.float64]
Bits = NDArray[np.bool_]
REACH = 4  # pixels of the network's image
_RADIUS = 5  # of the pattern
_LEAST_FIT = 0.9  # correlation
_LEAST_TEXTURE = 6.0  # standard deviation of gray levels, of 255
_LEAST_PEAK = 0.05  # by how much the best fit is better than those beside it, both ways along both axes


class Locator:
    """Looks points of images up in others; cameras [S, 3, 3], [S, 3], [S, 3, 3] of the network's images."""

    def __init__(self, scene: Scene, rotation: Doubles, translation: Doubles, intrinsic: Doubles) -> None:
        assert scene.depth is not None
        self.scene, self.depth = scene, scene.depth
        self.rotation, self.translation, self.intrinsic = rotation, translation, intrinsic
        span = np.arange(-_RADIUS, _RADIUS + 1)
        self.pattern = np.stack(np.meshgrid(span, span), axis=-1).reshape(-1, 2)  # x, y
        wide = np.arange(-_RADIUS - REACH, _RADIUS + REACH + 1)
        self.window = np.stack(np.meshgrid(wide, wide), axis=-1).reshape(-1, 2)

    def gray(self, index: int) -> Doubles:
        """[H, W] gray levels of an image, 0 to 255."""
        return self.scene.colors[index].numpy().astype(np.float64) @ (0.299, 0.587, 0.114)

    def look_up(self, first: Doubles, first_index: int, other: int, place: Doubles) -> tuple[Doubles, Bits]:
        """first: gray levels of image `first_index`. place: [n, 2] where its points should be in image `other`.

        Returns the places [n, 2] that were found, and for which points one was [n].
        """
        height, width = self.scene.size
        margin = _RADIUS + REACH + 1
        inside = ((place >= margin) & (place < (width - margin, height - margin))).all(-1)
        here = np.flatnonzero(inside)
        found, ok = place.copy(), np.zeros(len(place), np.bool_)
        if not len(here):
            return found, ok
        grid = place[here, None] + self.pattern  # [n, P, 2]
        expected, seen = self._expected(first, first_index, other, grid)
        side = 2 * (_RADIUS + REACH) + 1
        shown = sample(self.gray(other), place[here, None] + self.window).reshape(len(here), side, side)
        fit = _correlation(expected, shown)  # [n, 2 REACH + 1, 2 REACH + 1]
        shift, sharp = _peak(fit)
        ok[here] = seen & sharp & (expected.std(axis=-1) >= _LEAST_TEXTURE)
        found[here] += shift
        return found, ok

    def _expected(self, first: Doubles, index: int, other: int, grid: Doubles) -> tuple[Doubles, Bits]:
        """What of the first image should be seen at pixels [n, P, 2] of the other: [n, P]; whether all is in it."""
        height, width = self.scene.size
        flat = grid.reshape(-1, 2)
        intrinsic = self.intrinsic[other]
        local = np.ones((len(flat), 3))
        local[:, :2] = (flat - intrinsic[:2, 2]) / intrinsic.diagonal()[:2]
        local *= sample(self.depth[other].numpy(), flat)[:, None]
        world = (local - self.translation[other]) @ self.rotation[other]
        back, depth = project(world, self.rotation[index], self.translation[index], self.intrinsic[index])
        inside = (depth > 0) & (back >= 0).all(-1) & (back[:, 0] < width - 1) & (back[:, 1] < height - 1)
        levels = sample(first, np.where(inside[:, None], back, 0.0))
        whole: Bits = np.all(inside.reshape(grid.shape[:2]), axis=1)
        return levels.reshape(grid.shape[:2]), whole


def sample(values: NDArray[np.floating], places: Doubles) -> Doubles:
    """[H, W] between pixels at places [..., 2] (x, y) inside of it -> [...]."""
    flat, width = values.reshape(-1), values.shape[1]
    corner = np.floor(places).astype(np.int64)
    x, y = np.moveaxis(places - corner, -1, 0)
    at = corner[..., 1] * width + corner[..., 0]
    above = flat[at] * (1 - x) + flat[at + 1] * x
    return above * (1 - y) + (flat[at + width] * (1 - x) + flat[at + width + 1] * x) * y


def _correlation(pattern: Doubles, window: Doubles) -> Doubles:
    """Patterns [n, P] over windows [n, side, side] -> normalised cross-correlation [n, K, K] at each shift (y, x)."""
    size, shifts = 2 * _RADIUS + 1, 2 * REACH + 1
    pattern = pattern - pattern.mean(axis=1, keepdims=True)
    length = np.linalg.norm(pattern, axis=1)
    fit = np.empty((len(pattern), shifts, shifts))
    for down in range(shifts):
        for right in range(shifts):
            part = window[:, down : down + size, right : right + size].reshape(len(pattern), -1)
            part = part - part.mean(axis=1, keepdims=True)
            norm = length * np.linalg.norm(part, axis=1)
            fit[:, down, right] = (pattern * part).sum(axis=1) / np.maximum(norm, 1e-9)
    return fit


def _peak(fit: Doubles) -> tuple[Doubles, Bits]:
    """The shift [n, 2] (x, y) of the best fit, and whether it is good and sharp enough [n]."""
    shifts, numbers = fit.shape[1], np.arange(len(fit))
    down, right = np.divmod(fit.reshape(len(fit), -1).argmax(axis=1), shifts)
    inner = (down > 0) & (down < shifts - 1) & (right > 0) & (right < shifts - 1)
    y, x = down.clip(1, shifts - 2), right.clip(1, shifts - 2)
    best = fit[numbers, y, x]
    shift, sharp = np.empty((len(fit), 2)), inner & (best >= _LEAST_FIT)
    for axis, (low, high) in enumerate(
        ((fit[numbers, y, x - 1], fit[numbers, y, x + 1]), (fit[numbers, y - 1, x], fit[numbers, y + 1, x]))
    ):
        bend = 2 * best - low - high
        sharp &= bend > 2 * _LEAST_PEAK
        shift[:, axis] = (x, y)[axis] - REACH + (high - low) / (2 * np.maximum(bend, 1e-9))
    return shift, sharp
