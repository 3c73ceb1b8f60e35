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
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
FILES = ("cameras.bin", "rigs.bin", "frames.bin", "images.bin", "points3D.bin")
PINHOLE = 1
_CAMERA_SENSOR = 0
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


def write_model(folder: Path, model: ColmapModel) -> None:
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
    starts = np.searchsorted(model.seen_by[by_image], np.arange(len(model.names) + 1))
    places = np.empty(len(by_image), dtype=np.int64)  # of an observation among those of its image
    places[by_image] = np.arange(len(by_image)) - starts[model.seen_by[by_image]]
    with (folder / "images.bin").open("xb") as file:
        file.write(struct.pack("<Q", len(model.names)))
        for index, name in enumerate(model.names):
            _write_image(file, model, index, name, by_image[starts[index] : starts[index + 1]])
    with (folder / "points3D.bin").open("xb") as file:
        _write_points(file, model, places)


def _write_image(file: BinaryIO, model: ColmapModel, index: int, name: str, here: NDArray[np.int64]) -> None:
    if "\0" in name or not name:
        raise ValueError(f"{name!r} cannot be a name in a COLMAP model")
    file.write(struct.pack("<I7dI", index + 1, *model.poses[index], model.camera_of[index] + 1))
    file.write(name.encode() + b"\0" + struct.pack("<Q", len(here)))
    points = np.empty(len(here), dtype=_POINT2D)
    points["xy"], points["point"] = model.seen_at[here], model.seen_point[here] + 1
    file.write(points.tobytes())


def _write_points(file: BinaryIO, model: ColmapModel, indices: NDArray[np.int64]) -> None:
    """Records differ in length: their fixed parts are put where they belong, and tracks into what is left."""
    count = len(model.points)
    lengths = np.bincount(model.seen_point, minlength=count)
    records = np.empty(count, dtype=_POINT3D)
    records["id"], records["xyz"] = np.arange(1, count + 1), model.points
    records["rgb"], records["error"], records["length"] = model.colors, model.errors, lengths
    tracks = np.stack([model.seen_by + 1, indices], axis=-1).astype("<u4")
    ends = np.cumsum(lengths)
    content = np.empty(count * _POINT3D.itemsize + tracks.nbytes, dtype=np.uint8)
    starts = np.arange(count) * _POINT3D.itemsize + (ends - lengths) * tracks.itemsize * 2
    raw = records.view(np.uint8).reshape(count, -1)
    places = (starts[:, None] + np.arange(raw.shape[1])).reshape(-1)
    is_track = np.ones(len(content), dtype=np.bool_)
    content[places], is_track[places] = raw.reshape(-1), False
    content[is_track] = tracks.view(np.uint8).reshape(-1)
    file.write(struct.pack("<Q", count))
    file.write(content.data)
