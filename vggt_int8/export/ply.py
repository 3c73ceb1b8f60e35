"""Point clouds as binary little-endian PLY: x y z, red green blue, and where they are known confidence and normals."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggt_int8.export.color import Array, Colors
from vggt_int8.export.frames import in_order
from vggt_int8.export.selection import Pixels, Selection

_PLY_NAMES = {"<f4": "float", "u1": "uchar"}


@dataclass(frozen=True)
class _Part:
    """Numbers of a point that belong together: their names, type and number of bytes, and where they come from."""

    names: tuple[str, ...]
    kind: str
    of: Callable[[Selection, int, Pixels], NDArray[Any] | None]

    @property
    def size(self) -> int:
        return len(self.names) * np.dtype(self.kind).itemsize


_POSITION = _Part(("x", "y", "z"), "<f4", Selection.points)
_NORMAL = _Part(("nx", "ny", "nz"), "<f4", Selection.normals)
_COLOR = _Part(("red", "green", "blue"), "u1", Selection.colors)
_CONFIDENCE = _Part(("confidence",), "<f4", Selection.confidence)


def write_ply(
    path: Path,
    selection: Selection,
    pool: ThreadPoolExecutor,
    *,
    normals: bool = False,
    confidence: bool = True,
    on_frame: Callable[[], None] = lambda: None,
) -> None:
    """All points of a selection, image after image and row after row, as a new file; no more than some frames are in
    memory. Without normals where there is no surface, (0, 0, 0) stands.
    """
    known = confidence and selection.confidence(0, np.empty(0, np.int64)) is not None
    parts = [_POSITION, *([_NORMAL] if normals else []), _COLOR, *([_CONFIDENCE] if known else [])]
    header = _header(parts, selection.kept)
    starts = len(header) + sum(part.size for part in parts) * np.concatenate([[0], np.cumsum(selection.per_frame)])
    with path.open("xb") as file:
        file.write(header)
        file.flush()

        def put(index: int) -> None:
            pixels = selection.pixels(index)
            columns = [part.of(selection, index, pixels) for part in parts]
            write_all(file.fileno(), _rows(parts, columns), int(starts[index]))

        for _ in in_order(pool, put, range(len(selection.scene))):
            on_frame()


def ply_of(points: Array, colors: Colors) -> bytes:
    """A whole file of points [N, 3] fp32 with colours [N, 3] uint8 that are in memory already."""
    parts = [_POSITION, _COLOR]
    return _header(parts, len(points)) + _rows(parts, [points, colors])


def _header(parts: Sequence[_Part], count: int) -> bytes:
    properties = [f"property {_PLY_NAMES[part.kind]} {name}" for part in parts for name in part.names]
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {count}", *properties, "end_header"]
    return ("\n".join(lines) + "\n").encode("ascii")


def write_all(descriptor: int, content: memoryview, offset: int) -> None:
    """Write at a place of an open file; one call may write less than it is given."""
    while content:
        written = os.pwrite(descriptor, content, offset)
        content, offset = content[written:], offset + written


def _rows(parts: Sequence[_Part], columns: Sequence[Any]) -> memoryview:
    """The bytes of N points: of each the numbers of all parts (arrays [N, k], or [N] for one number), side by side.

    The numbers of a part are moved as one, which is twice as fast as one by one.
    """
    rows = np.empty(len(columns[0]), [(part.names[0], f"V{part.size}") for part in parts])
    for part, values in zip(parts, columns, strict=True):
        together = np.ascontiguousarray(values, dtype=part.kind).reshape(-1, len(part.names))
        rows[part.names[0]] = together.view(f"V{part.size}")[:, 0]
    return rows.view(np.uint8).data
