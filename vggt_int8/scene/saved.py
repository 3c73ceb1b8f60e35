"""A scene on disk, from which every export can be made again without the model: the folder `scene` of a run.

    scene.json             names, files, sizes and transforms of the images, and which of these files exist:
    colors.npy             uint8 [S, H, W, 3]: the images as the network read them, sRGB
    depth.npy, depth_conf.npy, world_points.npy, world_points_conf.npy
                           fp32, as in `Scene`
    extrinsic.npy, intrinsic.npy
                           fp32 [S, 3, 4] and [S, 3, 3]
    opaque.npy             bool [S, H, W], if any image is partly transparent
    track_points.npy, track_visibility.npy, track_confidence.npy
                           fp32, as in `Tracks`

Plain NumPy files: maps can be read anywhere, one frame at a time. They are written as frames arrive, so that a scene
larger than memory can be saved; scene.json is written last.
"""

import json
import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggt_int8.disk import naming
from vggt_int8.files import write_json
from vggt_int8.images import ImageTransform
from vggt_int8.plain_data import shown
from vggt_int8.scene.convention import CONVENTION
from vggt_int8.scene.scene import Scene, Tracks

FOLDER = "scene"
INDEX = "scene.json"
FORMAT_VERSION = 1
_SHAPES = {  # after S; H, W and N are known from the scene
    "colors": ("H", "W", 3),
    "opaque": ("H", "W"),
    "depth": ("H", "W"),
    "depth_conf": ("H", "W"),
    "world_points": ("H", "W", 3),
    "world_points_conf": ("H", "W"),
    "extrinsic": (3, 4),
    "intrinsic": (3, 3),
    "track_points": ("N", 2),
    "track_visibility": ("N",),
    "track_confidence": ("N",),
}
_OPTIONAL = ("extrinsic", "intrinsic", "depth", "depth_conf", "world_points", "world_points_conf")
_DTYPES = {"colors": np.dtype("u1"), "opaque": np.dtype("?")}  # all others are fp32
_FLOAT = np.dtype("<f4")


def save_scene(folder: Path, scene: Scene) -> None:
    """Write a whole scene into a new folder."""
    with SceneWriter(folder) as writer:
        writer.add(scene)


def load_scene(folder: Path) -> Scene:
    """The scene in a run's folder (which has a folder `scene`), or in that folder itself; its maps stay on disk.

    Raises FileNotFoundError if there is none, and ValueError, naming the file, if it is corrupted.
    """
    folder = folder.expanduser()
    place = folder if (folder / INDEX).is_file() else folder / FOLDER
    if not (place / INDEX).is_file():
        raise FileNotFoundError(
            f"{folder} holds no saved scene ({FOLDER}/{INDEX} is missing): give the folder of a `vggt-int8 run`, or of "
            "a scene of a batch"
        )
    index = _read_index(place / INDEX)
    try:
        images = index["images"]
        transforms = [_transform(image, tuple(index["size"])) for image in images]
        names = [str(image["name"]) for image in images]
        files = [None if image["file"] is None else Path(image["file"]) for image in images]
        present = list(index["arrays"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{place / INDEX} is damaged ({type(error).__name__}: {error}): run again") from error
    if not images or not {"colors"} <= set(present) <= set(_SHAPES):
        raise ValueError(f"{place / INDEX} lists {shown(present)} for {len(images)} images: run again")
    mapped = {name: _mapped(place / f"{name}.npy", name, len(images), tuple(index["size"])) for name in present}
    bases: list[Any] = [array.base for array in mapped.values()]
    pages = tuple(base for base in bases if isinstance(base, mmap.mmap))
    parts = {name: torch.from_numpy(array) for name, array in mapped.items()}
    opaque = parts.pop("opaque", None)
    if opaque is not None:
        transforms = [replace(transform, opaque=mask) for transform, mask in zip(transforms, opaque, strict=True)]
    track = [parts.pop(f"track_{part}", None) for part in ("points", "visibility", "confidence")]
    tracks = Tracks(*track) if all(part is not None for part in track) else None  # type: ignore[arg-type]
    colors = parts.pop("colors")
    known = {name: parts.get(name) for name in _OPTIONAL}
    return Scene(names=names, transforms=transforms, colors=colors, tracks=tracks, files=files, pages=pages, **known)


class SceneWriter:
    """Saves a scene as its frames arrive, in pieces of any length: `with SceneWriter(folder) as w: w.add(scene)`.

    After an error no scene.json is written, so that an incomplete scene is never taken for a whole one. All pieces must
    have the same parts and the same size, or ValueError is raised. Tracks span all frames: only a scene saved in one
    piece has them.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self._stacks: dict[str, _Stack] = {}
        self._images: list[dict[str, Any]] = []
        self._size: tuple[int, int] | None = None

    def add(self, piece: Scene) -> None:
        """Append the images of `piece`."""
        if piece.tracks is not None and self._images:
            raise ValueError("tracks go through all images, so a scene with tracks is saved in one piece")
        if self._size not in (None, piece.size):
            raise ValueError(f"images of {piece.size} (H, W) cannot follow images of {self._size}")
        parts = _parts(piece)
        opaque = [transform.opaque for transform in piece.transforms]
        if any(mask is not None for mask in opaque) and "opaque" not in self._stacks:
            self._stacks["opaque"] = stack = _Stack(self.folder / "opaque.npy", _DTYPES["opaque"], piece.size)
            for _ in self._images:
                stack.add(torch.ones((1, *piece.size), dtype=torch.bool))
        if "opaque" in self._stacks:
            whole = torch.ones(piece.size, dtype=torch.bool)
            parts["opaque"] = torch.stack([whole if mask is None else mask for mask in opaque])
        if self._images and parts.keys() != self._stacks.keys():
            raise ValueError(f"a piece with {sorted(parts)} cannot follow one with {sorted(self._stacks)}")
        self._size = piece.size
        for name, part in parts.items():
            if name not in self._stacks:
                dtype = _DTYPES.get(name, _FLOAT)
                self._stacks[name] = _Stack(self.folder / f"{name}.npy", dtype, tuple(part.shape[1:]))
            self._stacks[name].add(part)
        self._images += [_image(piece, index) for index in range(len(piece))]

    def finish(self, extrinsic: Tensor | None = None, intrinsic: Tensor | None = None) -> Scene:
        """Complete the files and return the scene. Cameras, if given, replace those of the pieces."""
        for name, cameras in (("extrinsic", extrinsic), ("intrinsic", intrinsic)):
            if cameras is not None:
                if len(cameras) != len(self._images):
                    raise ValueError(f"{len(cameras)} {name}s for {len(self._images)} images")
                if name in self._stacks:
                    self._stacks[name].discard()
                self._stacks[name] = _Stack(self.folder / f"{name}.npy", _FLOAT, tuple(cameras.shape[1:]))
                self._stacks[name].add(cameras)
        if self._size is None:
            raise ValueError("no images were added")
        for stack in self._stacks.values():
            stack.finish()
        write_json(
            self.folder / INDEX,
            {
                "format_version": FORMAT_VERSION,
                "convention": CONVENTION,
                "size": list(self._size),
                "arrays": sorted(self._stacks),
                "images": self._images,
            },
        )
        return load_scene(self.folder)

    def __enter__(self) -> "SceneWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is None and not (self.folder / INDEX).exists():
            self.finish()
        for stack in self._stacks.values():
            stack.file.close()


class _Stack:
    """One .npy file whose first dimension grows."""

    def __init__(self, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self.path, self.dtype, self.shape, self.count = path, dtype, shape, 0
        with naming(path):
            self.file: BinaryIO = path.open("xb")
            self._write_header()
        self._start = self.file.tell()

    def add(self, part: Tensor) -> None:
        if tuple(part.shape[1:]) != self.shape:
            raise ValueError(f"{self.path.stem} of shape {tuple(part.shape[1:])} cannot follow {self.shape}")
        array = np.ascontiguousarray(part.numpy(), dtype=self.dtype)
        with naming(self.path):
            self.file.write(array.data.cast("B"))
        self.count += len(part)

    def finish(self) -> None:
        """Write the length into the header, for which NumPy leaves room: a first dimension may grow."""
        if self.file.closed:
            return
        with naming(self.path):
            self.file.seek(0)
            self._write_header()
            assert self.file.tell() == self._start
            self.file.close()

    def discard(self) -> None:
        self.file.close()
        self.path.unlink()

    def _write_header(self) -> None:
        description = np.lib.format.dtype_to_descr(self.dtype)
        header = {"descr": description, "fortran_order": False, "shape": (self.count, *self.shape)}
        np.lib.format.write_array_header_1_0(self.file, header)


def _parts(scene: Scene) -> dict[str, Tensor]:
    """The parts that a scene has, by file name."""
    tracks = scene.tracks
    parts: Mapping[str, Tensor | None] = {
        **{name: getattr(scene, name) for name in ("colors", *_OPTIONAL)},
        "track_points": None if tracks is None else tracks.points,
        "track_visibility": None if tracks is None else tracks.visibility,
        "track_confidence": None if tracks is None else tracks.confidence,
    }
    return {name: part for name, part in parts.items() if part is not None}


def _image(scene: Scene, index: int) -> dict[str, Any]:
    transform, file = scene.transforms[index], scene.files[index]
    return {
        "name": scene.names[index],
        "file": None if file is None else os.fspath(file),
        "original_size": list(transform.original_size),
        "scale": list(transform.scale),
        "offset": list(transform.offset),
    }


def _transform(image: Mapping[str, Any], size: Sequence[int]) -> ImageTransform:
    (height, width), (scale_x, scale_y), (left, top) = (image[key] for key in ("original_size", "scale", "offset"))
    model_height, model_width = size
    return ImageTransform((height, width), (model_height, model_width), (scale_x, scale_y), (left, top))


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a whole JSON file ({error}): run again") from error
    version = index.get("format_version") if isinstance(index, dict) else None
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {shown(version)}, and this program reads {FORMAT_VERSION}: run again, or use "
            "the vggt-int8 that wrote it"
        )
    assert isinstance(index, dict)
    return index


def _mapped(path: Path, name: str, count: int, size: tuple[int, ...]) -> NDArray[Any]:
    """A .npy file as a memory-mapped array, copy-on-write."""
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is damaged ({error}): run again") from error
    known = {"H": size[0], "W": size[1]}
    expected = tuple(known.get(str(side), side) for side in _SHAPES[name])
    found = tuple("N" if side == "N" else length for side, length in zip(expected, array.shape[1:], strict=False))
    if array.dtype != _DTYPES.get(name, _FLOAT) or (*array.shape[:1], *found) != (count, *expected):
        raise ValueError(
            f"{path} holds {array.dtype} of shape {array.shape}, and {INDEX} speaks of {count} x {expected}: run again"
        )
    found_array: NDArray[Any] = array
    return found_array
