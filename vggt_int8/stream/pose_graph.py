"""Loop closure: a pose graph over similarity transforms, solved by scipy.

Nodes are windows, each with a similarity from its own world to the stream's. An edge (i, j) is a measurement of window
j in the world of window i. Its residual is the difference between the measurement and the nodes: a rotation (vector, in
units of `ROTATION`), a translation (in units of `TRANSLATION` times the edge's `reach`, a depth of what was seen there)
and a scale (logarithm, in units of `SCALE`). The sum of squares is minimized without a robust loss: loops were verified
before by what both visits see, and an edge with a large initial residual is exactly what a loop is for.

Strasdat, Montiel and Davison, "Scale Drift-Aware Large Scale Monocular SLAM" (2010), describe the problem and its
gauge: the first window is fixed.

Only the residuals are implemented here. Alternatives considered: pycolmap's PoseGraph has edges without a scale;
pyceres would need the same residuals as its cost functions; GTSAM 4.3 has an edge between similarities, in a wheel of
34 MB that requires pytest at run time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vggt_int8.similarity import Similarity

# Typical disagreement of windows at a seam, on the embedded model: radians, depths, logarithm.
ROTATION, TRANSLATION, SCALE = 0.005, 0.01, 0.02
_ROUNDS = 100
Array = NDArray[np.float64]
Placed = tuple[Array, Array, Array]  # scales [n], rotations [n, 3, 3], translations [n, 3]


@dataclass(frozen=True)
class Edge:
    """`measured` maps window `j`'s world to that of window `i`. reach: a typical depth in the latter."""

    i: int
    j: int
    measured: Similarity
    reach: float


def solve(start: Sequence[Similarity], edges: Sequence[Edge]) -> tuple[list[Similarity], dict[str, float]]:
    """Nodes and edges -> the nodes that fit the edges best, and the root mean square residual before and after, in the
    units above.

    Raises ValueError, saying what to install, without scipy.
    """
    optimize, rotation_class, sparse = _scipy()
    base, measured = _stack(start), _inverse(_stack([edge.measured for edge in edges]))
    i, j = (np.array([getattr(edge, end) for edge in edges]) for end in ("i", "j"))
    units = np.array([edge.reach / edge.measured.scale for edge in edges])[:, None] * TRANSLATION  # in j's world

    def nodes(x: Array) -> Placed:
        """Changes [7 (n - 1)] from the start: a rotation, a translation and the logarithm of a factor, applied in the
        node's own world, so that they do not depend on the length of the path.
        """
        change = np.concatenate([np.zeros((1, 7)), x.reshape(-1, 7)])
        return _then(
            (np.exp(change[:, 6]), rotation_class.from_rotvec(change[:, :3]).as_matrix(), change[:, 3:6]), base
        )

    def residuals(x: Array) -> Array:
        placed = nodes(x)
        onto_i = _then(tuple(part[j] for part in placed), _inverse(tuple(part[i] for part in placed)))
        scale, rotation, translation = _then(onto_i, measured)
        turn = rotation_class.from_matrix(rotation).as_rotvec() / ROTATION
        return np.concatenate([turn, translation / units, np.log(scale)[:, None] / SCALE], axis=1).ravel()

    pattern = sparse.lil_matrix((7 * len(edges), 7 * (len(start) - 1)), dtype=int)
    for row, edge in enumerate(edges):
        for node in {edge.i, edge.j} - {0}:
            pattern[7 * row : 7 * row + 7, 7 * (node - 1) : 7 * node] = 1
    x0 = np.zeros(7 * (len(start) - 1))
    found = optimize.least_squares(residuals, x0, jac_sparsity=pattern, method="trf", max_nfev=_ROUNDS)
    off = [float(np.sqrt(np.mean(residuals(x) ** 2))) for x in (x0, found.x)]
    solved = [
        Similarity(float(s), torch.from_numpy(r), torch.from_numpy(t)) for s, r, t in zip(*nodes(found.x), strict=True)
    ]
    return solved, {"before": round(off[0], 4), "after": round(off[1], 4)}


def _stack(similarities: Sequence[Similarity]) -> Placed:
    return (
        np.array([each.scale for each in similarities]),
        np.stack([each.rotation.double().numpy() for each in similarities]),
        np.stack([each.translation.double().numpy() for each in similarities]),
    )


def _then(first: Placed, second: Placed) -> Placed:
    """Composition, row by row."""
    (s, r, t), (scale, rotation, translation) = first, second
    return scale * s, rotation @ r, scale[:, None] * (rotation @ t[..., None])[..., 0] + translation


def _inverse(placed: Placed) -> Placed:
    scale, rotation, translation = placed
    back = rotation.swapaxes(1, 2)
    return 1 / scale, back, -(back @ translation[..., None])[..., 0] / scale[:, None]


def check_scipy() -> None:
    """Raise ValueError, saying what to install, if loops cannot be closed: before anything is reconstructed."""
    _scipy()


def _scipy() -> tuple[Any, Any, Any]:
    try:
        from scipy import optimize, sparse
        from scipy.spatial.transform import Rotation
    except ImportError as error:
        raise ValueError(
            "closing loops needs scipy: pip install 'vggt-int8[loops]', or leave it out (loops=False, --no-loops)"
        ) from error
    return optimize, Rotation, sparse
