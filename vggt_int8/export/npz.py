"""`predictions.npz`: the arrays that the reference's demo saves, with its names and shapes, for its scripts.

    images [S, 3, H, W] in [0, 1], pose_enc [S, 9], extrinsic [S, 3, 4], intrinsic [S, 3, 3], depth [S, H, W, 1],
    depth_conf [S, H, W], world_points [S, H, W, 3], world_points_conf [S, H, W], world_points_from_depth [S, H, W, 3]

All fp32; arrays of heads that did not run are left out. (The demo's `pose_enc_list`, which it sets to None before
saving, is not written: an entry that is no array can only be read with `allow_pickle`.)

The entries are uncompressed and written in parallel, one frame at a time, since their offsets in the file are known in
advance.
"""

import io
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vggt_int8.export.frames import Array, in_order
from vggt_int8.export.ply import write_all
from vggt_int8.export.selection import points_of
from vggt_int8.geometry import camera_to_pose_encoding
from vggt_int8.scene.scene import Scene

_LOCAL, _CENTRAL = b"PK\3\4", b"PK\1\2"
_VERSION = 45  # of the format: sizes of 64 bits
_DATE = (1 << 5) | 1  # 1980-01-01: the same scene gives the same file


@dataclass(frozen=True)
class Entry:
    """One array, frame by frame along its first dimension."""

    name: str
    shape: tuple[int, ...]  # with S
    frame: Callable[[int], Array]
    stored: bool = False  # `frame` computes nothing: others need not be asked for it


def write_predictions(
    path: Path, scene: Scene, pool: ThreadPoolExecutor, on_frame: Callable[[], None] = lambda: None
) -> list[str]:
    """Write the file -> the names of the arrays in it."""
    entries = _entries(scene)
    write_npz(path, entries, pool, on_frame)
    return [entry.name for entry in entries]


def write_npz(
    path: Path, entries: list[Entry], pool: ThreadPoolExecutor, on_frame: Callable[[], None] = lambda: None
) -> None:
    """An uncompressed .npz of fp32 arrays; `on_frame` is called after each frame of the first one."""
    headers = [_array_header(entry.shape) for entry in entries]
    sizes = [len(header) + 4 * int(np.prod(e.shape)) for header, e in zip(headers, entries, strict=True)]
    names = [f"{entry.name}.npy".encode() for entry in entries]
    lengths = [len(_local_header(name, 0, 0)) for name in names]
    offsets = np.concatenate([[0], np.cumsum(np.array(lengths) + sizes)]).tolist()
    with path.open("xb") as file, ThreadPoolExecutor(max(1, len(entries))) as writers:
        descriptor = file.fileno()

        def put(number: int) -> int:
            """Write one array and return its checksum."""
            place = offsets[number] + lengths[number]
            write_all(descriptor, memoryview(headers[number]), place)
            place, checksum = place + len(headers[number]), zlib.crc32(headers[number])
            entry = entries[number]
            indices = range(entry.shape[0])
            for frame in map(entry.frame, indices) if entry.stored else in_order(pool, entry.frame, indices):
                content = np.ascontiguousarray(frame, dtype="<f4").data.cast("B")
                checksum = zlib.crc32(content, checksum)
                write_all(descriptor, content, place)
                place += len(content)
                if number == 0:
                    on_frame()
            return checksum

        checksums = list(writers.map(put, range(len(entries))))
        directory = b""
        for name, size, checksum, offset in zip(names, sizes, checksums, offsets[:-1], strict=True):
            write_all(descriptor, memoryview(_local_header(name, size, checksum)), offset)
            directory += _central_header(name, size, checksum, offset)
        end = directory + _end_of_directory(len(entries), len(directory), offsets[-1])
        write_all(descriptor, memoryview(end), offsets[-1])


def _entries(scene: Scene) -> list[Entry]:
    count, (height, width) = len(scene), scene.size

    def stored(name: str, tensor: Any, *last: int) -> list[Entry]:
        if tensor is None:
            return []
        shape = (*tensor.shape, *last)
        array = tensor.numpy().reshape(shape)
        return [Entry(name, shape, array.__getitem__, stored=True)]

    entries = [Entry("images", (count, 3, height, width), lambda index: _image(scene, index))]
    if scene.extrinsic is not None and scene.intrinsic is not None:
        entries += stored("pose_enc", camera_to_pose_encoding(scene.extrinsic, scene.intrinsic, scene.size))
    entries += stored("extrinsic", scene.extrinsic) + stored("intrinsic", scene.intrinsic)
    entries += stored("depth", scene.depth, 1) + stored("depth_conf", scene.depth_conf)
    entries += stored("world_points", scene.world_points) + stored("world_points_conf", scene.world_points_conf)
    if scene.depth is not None and scene.extrinsic is not None and scene.intrinsic is not None:
        shape = (count, height, width, 3)
        entries.append(Entry("world_points_from_depth", shape, lambda index: points_of(scene, "depth", index)))
    return entries


def _image(scene: Scene, index: int) -> Array:
    planes = scene.colors[index].numpy().transpose(2, 0, 1)
    return np.multiply(planes, np.float32(1 / 255), dtype=np.float32, order="C")


def _array_header(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def _local_header(name: bytes, size: int, checksum: int) -> bytes:
    extra = struct.pack("<HHQQ", 1, 16, size, size)
    ones = 0xFFFFFFFF  # the sizes stand in the extra field
    fixed = struct.pack("<4s5H3I2H", _LOCAL, _VERSION, 0, 0, 0, _DATE, checksum, ones, ones, len(name), len(extra))
    return fixed + name + extra


def _central_header(name: bytes, size: int, checksum: int, offset: int) -> bytes:
    extra = struct.pack("<HHQQQ", 1, 24, size, size, offset)
    ones = 0xFFFFFFFF
    fixed = struct.pack(
        "<4s6H3I5H2I",
        *(_CENTRAL, _VERSION, _VERSION, 0, 0, 0, _DATE, checksum, ones, ones, len(name), len(extra), 0, 0, 0, 0, ones),
    )
    return fixed + name + extra


def _end_of_directory(count: int, size: int, offset: int) -> bytes:
    """The end in 64 bits, its locator, and the end as it was before 64 bits, which refers to these."""
    end64 = struct.pack(
        "<4sQ2H2I4Q", b"PK\6\6", 44, _VERSION, _VERSION, 0, 0, count, count, size, offset
    )  # fmt: skip
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, offset + size, 1)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return end64 + locator + end
