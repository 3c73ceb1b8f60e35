"""COLMAP models as files, text or binary: cameras and posed images. Points are not read.

    cameras.txt   ID MODEL WIDTH HEIGHT PARAMETERS...                   cameras.bin
    images.txt    ID QW QX QY QZ TX TY TZ CAMERA NAME, then a line      images.bin, frames.bin, rigs.bin

Since version 4 poses are those of frames.bin, where that is there, and images.bin's are not looked at; COLMAP reads
models so, and so do we, of rigs of one camera. Of several cameras a rig's own poses would have to be added: such models
are refused. Described at https://colmap.github.io/format.html.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggt_int8.geometry import quaternion_to_rotation
from vggt_int8.plain_data import shown

Doubles = NDArray[np.float64]
# Name and number of parameters, in the order of the model ids in binary files.
MODELS = (
    *(("SIMPLE_PINHOLE", 3), ("PINHOLE", 4), ("SIMPLE_RADIAL", 4), ("RADIAL", 5), ("OPENCV", 8)),
    *(("OPENCV_FISHEYE", 8), ("FULL_OPENCV", 12), ("FOV", 5), ("SIMPLE_RADIAL_FISHEYE", 4)),
    *(("RADIAL_FISHEYE", 5), ("THIN_PRISM_FISHEYE", 12)),
)
_PARAMETERS = dict(MODELS)
PINHOLES = ("SIMPLE_PINHOLE", "PINHOLE")
FOLDERS = ("", "sparse/0", "sparse", "colmap/sparse/0", "dslr_calibration_undistorted")


class ModelError(ValueError):
    """A model that cannot be read. The message names the file."""


@dataclass(frozen=True)
class Camera:
    """size (H, W) pixels; parameters in COLMAP's order, in pixels whose first one is centred on (0.5, 0.5)."""

    model: str
    size: tuple[int, int]
    parameters: Doubles

    def intrinsic(self) -> Tensor:
        """[3, 3] fp32 of a pinhole camera. Raises `ModelError` for other camera models, whose images must be
        undistorted first.
        """
        if self.model not in PINHOLES:
            raise ModelError(
                f"cameras of model {self.model} bend lines: undistort the images first (colmap image_undistorter)"
            )
        values = self.parameters.tolist()
        fx, fy, cx, cy = values if self.model == "PINHOLE" else (values[0], *values)
        return torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=torch.float32)


@dataclass(frozen=True)
class PosedImage:
    """name: relative to the folder of images. extrinsic [3, 4] fp32, camera from world."""

    name: str
    camera: int
    extrinsic: Tensor


@dataclass(frozen=True)
class Model:
    """cameras: by id; ids need not be consecutive. images: sorted by name."""

    cameras: dict[int, Camera]
    images: list[PosedImage]


def find_model(folder: Path) -> Path:
    """The folder at or below `folder` that contains a model. Raises FileNotFoundError with the searched places."""
    for name in FOLDERS:
        if any((folder / name / f"cameras.{kind}").is_file() for kind in ("bin", "txt")):
            return folder / name
    where = ", ".join(name or "." for name in FOLDERS)
    raise FileNotFoundError(f"{folder} holds no COLMAP model: there is no cameras.bin or cameras.txt in {where}")


def read_model(folder: Path) -> Model:
    """Read the model in a folder; binary files take precedence. Raises `ModelError`, naming the file, and OSError."""
    binary = (folder / "cameras.bin").is_file()
    read = (_cameras_bin, _images_bin) if binary else (_cameras_txt, _images_txt)
    cameras, images = read[0](folder), read[1](folder)
    if not images:
        raise ModelError(f"{folder} has no image with a pose")
    for image in images:
        if image.camera not in cameras:
            raise ModelError(f"{folder}: image {shown(image.name)} names camera {image.camera}, which there is not")
    return Model(cameras, sorted(images, key=lambda image: image.name))


def _cameras_txt(folder: Path) -> dict[int, Camera]:
    cameras = {}
    for line in _lines(folder / "cameras.txt"):
        words = line.split()
        try:
            number, model, width, height = int(words[0]), words[1], int(words[2]), int(words[3])
            cameras[number] = _camera(model, (height, width), [float(word) for word in words[4:]])
        except (ValueError, IndexError) as error:
            raise ModelError(f"{folder / 'cameras.txt'}: {shown(line)} is no camera: {error}") from error
    return cameras


def _images_txt(folder: Path) -> list[PosedImage]:
    """Parse images.txt. Every second line lists observations and may be empty."""
    images, lines = [], _lines(folder / "images.txt", keep_empty=True)
    for line in lines[::2]:
        words = line.split(maxsplit=9)
        if not words and line is lines[-1]:
            continue
        try:
            values = [float(word) for word in words[1:8]]
            images.append(PosedImage(words[9].strip(), int(words[8]), _extrinsic(values)))
        except (ValueError, IndexError) as error:
            raise ModelError(f"{folder / 'images.txt'}: {shown(line)} is no image: {error}") from error
    return images


def _lines(path: Path, *, keep_empty: bool = False) -> list[str]:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return lines if keep_empty else [line for line in lines if line.strip()]


def _camera(model: str, size: tuple[int, int], values: list[float]) -> Camera:
    count = _PARAMETERS.get(model)
    if count is None:
        raise ModelError(f"camera model {shown(model)} is not known; known are {', '.join(_PARAMETERS)}")
    if len(values) != count or not np.isfinite(values).all() or values[0] <= 0 or min(size) < 1:
        raise ModelError(f"{model} of {size[1]} x {size[0]} pixels has parameters {shown(values)}: {count} are needed")
    return Camera(model, size, np.array(values))


def _extrinsic(values: "list[float] | tuple[float, ...]") -> Tensor:
    """Convert a quaternion (scalar first) and a translation to [3, 4]."""
    if len(values) != 7 or not np.isfinite(values).all() or not np.any(values[:4]):
        raise ModelError(f"{shown(list(values))} is no pose")
    w, x, y, z = values[:4]
    rotation = quaternion_to_rotation(torch.tensor([x, y, z, w], dtype=torch.float64))
    return torch.cat([rotation, torch.tensor(values[4:], dtype=torch.float64)[:, None]], dim=1).float()


class _Reader:
    """Unpacks structures from the contents of a file, and reports a file that ends too early."""

    def __init__(self, path: Path) -> None:
        self.path, self.content, self.at = path, path.read_bytes(), 0

    def take(self, form: str) -> tuple[float, ...]:
        try:
            found = struct.unpack_from(f"<{form}", self.content, self.at)
        except struct.error as error:
            raise ModelError(f"{self.path} ends after {len(self.content)} bytes, in the middle of an entry") from error
        self.at += struct.calcsize(f"<{form}")
        return found

    def integer(self, form: str) -> int:
        return int(self.take(form)[0])

    def name(self) -> str:
        end = self.content.find(b"\0", self.at)
        if end < 0:
            raise ModelError(f"{self.path} ends in the middle of a name")
        found = self.content[self.at : end].decode("utf-8", "surrogateescape")
        self.at = end + 1
        return found

    def skip(self, size: int) -> None:
        self.at += size
        if self.at > len(self.content):
            raise ModelError(f"{self.path} ends after {len(self.content)} bytes, in the middle of an entry")


def _cameras_bin(folder: Path) -> dict[int, Camera]:
    reader, cameras = _Reader(folder / "cameras.bin"), {}
    for _ in range(reader.integer("Q")):
        number, kind, width, height = (int(value) for value in reader.take("IiQQ"))
        if not 0 <= kind < len(MODELS):
            raise ModelError(f"{reader.path}: camera {number} is of model {kind}, which is not known")
        name, count = MODELS[kind]
        cameras[number] = _camera(name, (height, width), list(reader.take(f"{count}d")))
    return cameras


def _images_bin(folder: Path) -> list[PosedImage]:
    reader, poses, images = _Reader(folder / "images.bin"), _poses_of_frames(folder), []
    for _ in range(reader.integer("Q")):
        number, *pose, camera = reader.take("I7dI")
        name = reader.name()
        reader.skip(24 * reader.integer("Q"))
        if poses is None:
            images.append(PosedImage(name, int(camera), _extrinsic(pose)))
        elif int(number) in poses:
            images.append(PosedImage(name, int(camera), _extrinsic(poses[int(number)])))
    return images


def _poses_of_frames(folder: Path) -> dict[int, list[float]] | None:
    """Image -> its pose according to frames.bin; None without that file."""
    if not (folder / "frames.bin").is_file():
        return None
    _check_rigs(_Reader(folder / "rigs.bin"))
    reader, poses = _Reader(folder / "frames.bin"), {}
    for _ in range(reader.integer("Q")):
        pose = list(reader.take("II7d")[2:])
        for _ in range(reader.integer("I")):
            _, _, image = reader.take("iIQ")
            poses[int(image)] = pose
    return poses


def _check_rigs(reader: _Reader) -> None:
    for _ in range(reader.integer("Q")):
        number, sensors = (int(value) for value in reader.take("II"))
        if sensors > 1:
            raise ModelError(f"{reader.path}: rig {number} has {sensors} sensors; rigs of one camera are read")
        reader.skip(8 * sensors)
