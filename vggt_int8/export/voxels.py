"""One point per voxel, without holding all points: the most confident, and of equals the first."""

import numpy as np
from numpy.typing import NDArray

from vggt_int8.export.frames import Array

_BITS = 21  # of a cube's number along each axis: three of them fit into an int64
_BATCH = 4_000_000  # points that are sorted at a time


class VoxelGrid:
    """Points go in piece by piece; what comes out are the ranks (0 for the first point of all) of those that stay."""

    def __init__(self, size: float) -> None:
        self.size, self.count = size, 0
        self._keys = np.empty(0, np.int64)
        self._ranks = np.empty(0, np.int64)
        self._confidence = np.empty(0, np.float32)
        self._waiting: list[tuple[NDArray[np.int64], NDArray[np.int64], Array]] = []

    def add(self, points: Array, confidence: Array) -> None:
        """points [N, 3], confidence [N]. Raises ValueError if the cubes are too small to be told apart."""
        cells = np.floor(points.astype(np.float64) / self.size)
        if cells.size and np.abs(cells).max() >= 1 << (_BITS - 1):
            raise ValueError(
                f"voxel is {self.size:g}; with points as far out as {np.abs(points).max():.3g} that is more than "
                f"{2**_BITS:,} cubes along an axis: choose a larger one"
            )
        x, y, z = (cells.astype(np.int64) + (1 << (_BITS - 1))).T
        ranks = np.arange(self.count, self.count + len(points))
        self._waiting.append(((x << 2 * _BITS) | (y << _BITS) | z, ranks, confidence))
        self.count += len(points)
        if sum(len(keys) for keys, _, _ in self._waiting) > _BATCH:
            self._merge()

    def finish(self) -> NDArray[np.int64]:
        """The ranks of the points that stay, ascending."""
        self._merge()
        return np.sort(self._ranks)

    def _merge(self) -> None:
        pieces = [(self._keys, self._ranks, self._confidence), *self._waiting]
        keys, ranks, confidence = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
        order = np.lexsort((ranks, -confidence, keys))
        keys = keys[order]
        first = np.concatenate([[True], keys[1:] != keys[:-1]]) if len(keys) else np.empty(0, np.bool_)
        self._keys, self._ranks, self._confidence = keys[first], ranks[order][first], confidence[order][first]
        self._waiting = []
