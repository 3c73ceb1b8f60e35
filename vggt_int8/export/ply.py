"""Point clouds as binary little-endian PLY: x y z, red green blue, and where they are known confidence and normals."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from vggt_int8.export.color import Array, Colors
from vggt_int8.export.frames import in_order
from vggt_int8.export.selection import Selection

_PLY_NAMES = {"f": "float", "u": "uchar"}
_POSITION = [("x", "<f4"), ("y", "<f4"), ("z", "<f4")]
_NORMAL = [("nx", "<f4"), ("ny", "<f4"), ("nz", "<f4")]
_COLOR = [("red", "u1"), ("green", "u1"), ("blue", "u1")]


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
    vertex = np.dtype([*_POSITION, *(_NORMAL if normals else []), *_COLOR, *([("confidence", "<f4")] if known else [])])
    header = _header(vertex, selection.kept)
    starts = len(header) + vertex.itemsize * np.concatenate([[0], np.cumsum(selection.per_frame)])
    with path.open("xb") as file:
        file.write(header)
        file.flush()

        def put(index: int) -> None:
            vertices = _vertices(selection, index, vertex)
            write_all(file.fileno(), vertices.data.cast("B"), int(starts[index]))

        for _ in in_order(pool, put, range(len(selection.scene))):
            on_frame()


def ply_of(points: Array, colors: Colors) -> bytes:
    """A whole file of points [N, 3] fp32 with colours [N, 3] uint8 that are in memory already."""
    vertices = np.empty(len(points), np.dtype([*_POSITION, *_COLOR]))
    for fields, columns in ((_POSITION, points), (_COLOR, colors)):
        for axis, (name, _) in enumerate(fields):
            vertices[name] = columns[:, axis]
    return _header(vertices.dtype, len(points)) + vertices.tobytes()


def _header(vertex: np.dtype[Any], count: int) -> bytes:
    properties = [f"property {_PLY_NAMES[vertex[name].kind]} {name}" for name in vertex.names or ()]
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {count}", *properties, "end_header"]
    return ("\n".join(lines) + "\n").encode("ascii")


def write_all(descriptor: int, content: memoryview, offset: int) -> None:
    """Write at a place of an open file; one call may write less than it is given."""
    while content:
        written = os.pwrite(descriptor, content, offset)
        content, offset = content[written:], offset + written


def _vertices(selection: Selection, index: int, vertex: np.dtype[Any]) -> Any:
    vertices = np.empty(int(selection.per_frame[index]), dtype=vertex)
    if not len(vertices):
        return vertices
    pixels, names = selection.pixels(index), vertex.names or ()
    columns: dict[tuple[str, ...], Any] = {
        ("x", "y", "z"): selection.points(index, pixels),
        ("red", "green", "blue"): selection.colors(index, pixels),
    }
    if "nx" in names:
        columns["nx", "ny", "nz"] = selection.normals(index, pixels)
    for group, values in columns.items():
        for axis, name in enumerate(group):
            vertices[name] = values[:, axis]
    if "confidence" in names:
        vertices["confidence"] = selection.confidence(index, pixels)
    return vertices
