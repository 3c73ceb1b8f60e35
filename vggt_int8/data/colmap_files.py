"""The files of a COLMAP model, in text and in binary form, entry by entry.

    cameras   ID MODEL WIDTH HEIGHT PARAMETERS...
    images    ID POSE CAMERA NAME, then the observations: in text a line of their own, which may be empty
    rigs      ID SENSORS, the reference sensor, then each other one, with its POSE (from the rig) where it is known
    frames    ID RIG POSE IMAGES, then which image each sensor took; the pose is that of the rig

POSE: QW QX QY QZ TX TY TZ, from the world. Described at https://colmap.github.io/format.html.
"""

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from vggt_int8.data.camera import MODELS, Camera, ModelError
from vggt_int8.geometry import quaternion_to_rotation
from vggt_int8.plain_data import shown

# The type of a sensor that takes images, in text and in binary files. Rigs may have others.
TEXT_CAMERA, BINARY_CAMERA = "CAMERA", 0


class Entry(NamedTuple):
    """An image. pose: camera from world [3, 4] fp64."""

    number: int
    pose: Tensor
    camera: int
    name: str


class Rig(NamedTuple):
    """reference: the camera that stands at the rig's origin, if it is one. others: camera -> camera from rig [3, 4]."""

    number: int
    reference: int | None
    others: dict[int, Tensor]


class Frame(NamedTuple):
    """What a rig took at one moment. pose: rig from world [3, 4] fp64. images: camera and image."""

    rig: int
    pose: Tensor
    images: list[tuple[int, int]]


class ModelFiles(Protocol):
    """Readers of a model's files. They raise `ModelError`, naming the file, and OSError."""

    def path(self, name: str) -> Path: ...

    def cameras(self) -> Iterator[tuple[int, Camera]]: ...

    def images(self) -> Iterator[Entry]: ...

    def rigs(self) -> Iterator[Rig]: ...

    def frames(self) -> Iterator[Frame]: ...


def _pose(values: Sequence[float]) -> Tensor:
    """Convert a quaternion (scalar first) and a translation to [3, 4]."""
    if len(values) != 7 or not np.isfinite(values).all() or not np.any(values[:4]):
        raise ModelError(f"{shown(list(values))} is no pose")
    w, x, y, z, *translation = values
    rotation = quaternion_to_rotation(torch.tensor([x, y, z, w], dtype=torch.float64))
    return torch.cat([rotation, torch.tensor(translation, dtype=torch.float64)[:, None]], dim=1)


class TextFiles:
    """One entry a line; empty lines and comments are skipped, except for the line after an image."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.txt"

    def cameras(self) -> Iterator[tuple[int, Camera]]:
        for line in self._entries(self._lines("cameras")):
            with self._named("cameras", "camera", line):
                number, model, width, height, *values = line.split()
                yield int(number), Camera(model, (int(height), int(width)), np.array(values, dtype=np.float64))

    def images(self) -> Iterator[Entry]:
        lines = self._lines("images")
        for line in self._entries(lines):
            with self._named("images", "image", line):
                number, *pose, camera, name = line.split(maxsplit=9)
                yield Entry(int(number), _pose(_floats(pose)), int(camera), name.strip())
            observations = next(lines, "")
            if _is_image(observations):
                raise ModelError(
                    f"{self.path('images')}: {shown(observations)} stands where the observations of {shown(name)} "
                    "belong: they have a line after each image, which may be empty"
                )

    def rigs(self) -> Iterator[Rig]:
        for line in self._entries(self._lines("rigs")):
            with self._named("rigs", "rig", line):
                number, count, *words = line.split()
                reference, others, rest = None, {}, iter(words[2:])
                if int(count) and words[0] == TEXT_CAMERA:
                    reference = int(words[1])
                for _ in range(int(count) - 1):
                    kind, sensor, known = next(rest), int(next(rest)), next(rest)
                    pose = [next(rest) for _ in range(7 if known == "1" else 0)]
                    if pose and kind == TEXT_CAMERA:
                        others[sensor] = _pose(_floats(pose))
                yield Rig(int(number), reference, others)

    def frames(self) -> Iterator[Frame]:
        for line in self._entries(self._lines("frames")):
            with self._named("frames", "frame", line):
                words = line.split()
                data = [words[10 + 3 * i : 13 + 3 * i] for i in range(int(words[9]))]
                images = [(int(sensor), int(image)) for kind, sensor, image in data if kind == TEXT_CAMERA]
                yield Frame(int(words[1]), _pose(_floats(words[2:9])), images)

    def _lines(self, name: str) -> Iterator[str]:
        return iter(self.path(name).read_text(encoding="utf-8", errors="surrogateescape").split("\n"))

    def _entries(self, lines: Iterator[str]) -> Iterator[str]:
        return (line for line in lines if line.strip() and not line.lstrip().startswith("#"))

    @contextmanager
    def _named(self, name: str, kind: str, line: str) -> Iterator[None]:
        """Errors of the block name the file and the line."""
        try:
            yield
        except (ValueError, IndexError, StopIteration) as error:
            raise ModelError(f"{self.path(name)}: {shown(line)} is no {kind}: {error}") from error


def _floats(words: Sequence[str]) -> list[float]:
    return [float(word) for word in words]


def _is_image(line: str) -> bool:
    """Whether a line is an image's, and not a list of observations, all of whose words are numbers."""
    words = line.split(maxsplit=9)
    if len(words) < 10:
        return False
    try:
        float(words[9].split()[0])
    except ValueError:
        return True
    return False


class BinaryFiles:
    """Structures of little-endian numbers, after their number."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.bin"

    def cameras(self) -> Iterator[tuple[int, Camera]]:
        for reader in _entries(self.path("cameras")):
            number, kind, width, height = reader.integers("IiQQ")
            if not 0 <= kind < len(MODELS):
                raise ModelError(f"{reader.path}: camera {number} is of model {kind}, which is not known")
            name, count = MODELS[kind]
            with reader.named(f"camera {number}"):
                yield number, Camera(name, (height, width), np.array(reader.take(f"{count}d")))

    def images(self) -> Iterator[Entry]:
        for reader in _entries(self.path("images")):
            number, *pose, camera = reader.take("I7dI")
            name = reader.name()
            reader.skip(24 * reader.integers("Q")[0])
            with reader.named(f"image {shown(name)}"):
                yield Entry(int(number), _pose(pose), int(camera), name)

    def rigs(self) -> Iterator[Rig]:
        for reader in _entries(self.path("rigs")):
            number, count = reader.integers("II")
            kind, first = reader.integers("iI") if count else (-1, 0)
            others = {}
            for _ in range(count - 1):
                other, sensor, known = reader.integers("iIB")
                pose = reader.take("7d") if known else ()
                if pose and other == BINARY_CAMERA:
                    with reader.named(f"rig {number}"):
                        others[sensor] = _pose(pose)
            yield Rig(number, first if kind == BINARY_CAMERA else None, others)

    def frames(self) -> Iterator[Frame]:
        for reader in _entries(self.path("frames")):
            (number, rig), pose = reader.integers("II"), reader.take("7d")
            data = [reader.integers("iIQ") for _ in range(reader.integers("I")[0])]
            with reader.named(f"frame {number}"):
                yield Frame(
                    rig, _pose(pose), [(sensor, image) for kind, sensor, image in data if kind == BINARY_CAMERA]
                )


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

    def integers(self, form: str) -> tuple[int, ...]:
        return tuple(map(int, self.take(form)))

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

    @contextmanager
    def named(self, what: str) -> Iterator[None]:
        """Errors of the block name the file and the entry."""
        try:
            yield
        except ModelError as error:
            raise ModelError(f"{self.path}: {what}: {error}") from error


def _entries(path: Path) -> Iterator[_Reader]:
    """The file's reader, at the start of each entry."""
    reader = _Reader(path)
    for _ in range(reader.integers("Q")[0]):
        yield reader
