"""The five files of a COLMAP model in its current binary format, little-endian, without COLMAP.

    cameras.bin    n; id u32, model i32, width u64, height u64, parameters f64...
    rigs.bin       n; id u32, sensors u32, then the reference sensor: type i32, id u32
    frames.bin     n; id u32, rig u32, rig from world as 7 f64, data u32, then each: type i32, sensor u32, image u64
    images.bin     n; id u32, camera from world as 7 f64, camera u32, name 0, m u64, then each: x f64, y f64, point u64
    points3D.bin   n; id u64, x y z f64, r g b u8, error f64, m u64, then each: image u32, index of its point u32

n is a u64; a pose is a quaternion, scalar first, and a translation. Every camera is its own rig and every image its
own frame. Poses are read from frames.bin where it exists, and then those in images.bin are not looked at.
Described at https://colmap.github.io/format.html; how it is read, tests/export/test_colmap.py asks pycolmap.
"""

import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vggt_int8.export.frames import in_order

Doubles = NDArray[np.float64]
FILES = ("cameras.bin", "rigs.bin", "frames.bin", "images.bin", "points3D.bin")
PINHOLE = 1
_CAMERA_SENSOR = 0
_PIECE = 4096  # points whose records are made at a time
_POINT2D = np.dtype([("xy", "<f8", 2), ("point", "<u8")])
_POINT3D = np.dtype([("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("length", "<u8")])


@dataclass(frozen=True)
class ColmapModel:
    """S images, C cameras, N points with M observations. Ids in the files are these indices plus 1."""

    sizes: list[tuple[int, int]]  # [C] (W, H)
    parameters: Doubles  # [C, 4] fx, fy, cx, cy; the first pixel is centred on (0.5, 0.5)
    camera_of: list[int]  # [S]
    names: list[str]  # [S]
    poses: Doubles  # [S, 7] camera from world: quaternion w x y z, translation
    points: Doubles  # [N, 3]
    colors: NDArray[np.uint8]  # [N, 3]
    errors: Doubles  # [N] mean reprojection error, pixels
    seen_by: NDArray[np.int64]  # [M] image of each observation
    seen_at: Doubles  # [M, 2] its pixel
    seen_point: NDArray[np.int64]  # [M] its point, ascending


def write_model(folder: Path, model: ColmapModel, pool: ThreadPoolExecutor) -> None:
    """Write the five files into a folder that is there and has none of them."""
    with (folder / "cameras.bin").open("xb") as file:
        file.write(struct.pack("<Q", len(model.sizes)))
        for number, ((width, height), values) in enumerate(zip(model.sizes, model.parameters, strict=True), start=1):
            file.write(struct.pack("<IiQQ4d", number, PINHOLE, width, height, *values))
    with (folder / "rigs.bin").open("xb") as file:
        file.write(struct.pack("<Q", len(model.sizes)))
        for number in range(1, len(model.sizes) + 1):
            file.write(struct.pack("<IIiI", number, 1, _CAMERA_SENSOR, number))
    with (folder / "frames.bin").open("xb") as file:
        file.write(struct.pack("<Q", len(model.names)))
        for number, (pose, camera) in enumerate(zip(model.poses, model.camera_of, strict=True), start=1):
            file.write(struct.pack("<II7dI", number, camera + 1, *pose, 1))
            file.write(struct.pack("<iIQ", _CAMERA_SENSOR, camera + 1, number))
    # NumPy sorts integers of 16 bits by their digits, some ten times as fast.
    small = np.uint16 if len(model.names) < 1 << 16 else np.int64
    by_image = np.argsort(model.seen_by.astype(small), kind="stable")
    counts = np.bincount(model.seen_by, minlength=len(model.names))
    starts = np.concatenate([[0], np.cumsum(counts)])
    places = np.empty(len(by_image), dtype=np.uint32)  # of an observation among those of its image
    places[by_image] = np.arange(len(by_image)) - np.repeat(starts[:-1], counts)
    with (folder / "images.bin").open("xb") as file:
        file.write(struct.pack("<Q", len(model.names)))
        file.writelines(
            in_order(pool, lambda i: _image(model, i, by_image[starts[i] : starts[i + 1]]), range(len(model.names)))
        )
    lengths = np.bincount(model.seen_point, minlength=len(model.points))
    with (folder / "points3D.bin").open("xb") as file:
        file.write(struct.pack("<Q", len(model.points)))
        pieces = range(0, len(model.points), _PIECE)
        file.writelines(in_order(pool, lambda first: _points(model, places, lengths, first), pieces))


def _image(model: ColmapModel, index: int, here: NDArray[np.int64]) -> bytes:
    """The record of an image, whose observations are `here`."""
    name = model.names[index]
    if "\0" in name or not name:
        raise ValueError(f"{name!r} cannot be a name in a COLMAP model")
    fixed = struct.pack("<I7dI", index + 1, *model.poses[index], model.camera_of[index] + 1)
    points = np.empty(len(here), dtype=_POINT2D)
    points["xy"], points["point"] = model.seen_at[here], model.seen_point[here] + 1
    return fixed + name.encode() + b"\0" + struct.pack("<Q", len(here)) + points.tobytes()


def _points(model: ColmapModel, places: NDArray[np.uint32], lengths: NDArray[np.int64], first: int) -> memoryview:
    """The records of `_PIECE` points from the first on; they differ in length, by their tracks of `lengths`.

    places: of every observation among those of its image. Fixed parts are put where they belong, and tracks into what
    is left.
    """
    here = slice(first, first + _PIECE)
    lengths = lengths[here]
    count, (begin, end) = len(lengths), np.searchsorted(model.seen_point, (first, first + _PIECE))
    records = np.empty(count, dtype=_POINT3D)
    records["id"], records["xyz"] = np.arange(first + 1, first + count + 1), model.points[here]
    records["rgb"], records["error"], records["length"] = model.colors[here], model.errors[here], lengths
    tracks = np.stack([model.seen_by[begin:end] + 1, places[begin:end]], axis=-1).astype("<u4")
    content = np.empty(records.nbytes + tracks.nbytes, dtype=np.uint8)
    starts = np.arange(count) * _POINT3D.itemsize + (np.cumsum(lengths) - lengths) * 2 * tracks.itemsize
    fixed = (starts[:, None] + np.arange(_POINT3D.itemsize)).reshape(-1)
    is_track = np.ones(len(content), dtype=np.bool_)
    content[fixed], is_track[fixed] = records.view(np.uint8), False
    content[is_track] = tracks.view(np.uint8).reshape(-1)
    return content.data
