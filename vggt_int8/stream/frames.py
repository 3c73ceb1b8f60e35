"""The source of a stream: frames of any kind -> the network's input, all of one size.

A frame may be the path of an image, a PIL image, an array [H, W, 3] uint8, or anything with `image`, `seconds` and
`name`, like `vggt_int8.video.VideoFrame`. Images are decoded and resized by threads while the device computes.
"""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from vggt_int8.ahead import begun
from vggt_int8.images.decode import Decoded, decode_for_another
from vggt_int8.images.fit import ImageTransform, Mode, fit_image, pad_white
from vggt_int8.images.pixels import as_rgb, narrow_bits
from vggt_int8.plain_data import shown

Frames = Iterable[Any] | Callable[[int], Iterable[Any]]


@dataclass(frozen=True)
class Frame:
    """One frame of a stream.

    index: from the stream's first frame.
    seconds: for a video, else None.
    taken_at: when it left the source, by `time.perf_counter`.
    pixels: fp32 [3, H, W] in [0, 1].
    remarks: warnings about its image.
    """

    index: int
    name: str
    seconds: float | None
    file: Path | None
    taken_at: float
    pixels: Tensor
    transform: ImageTransform
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Taken:
    index: int
    item: Any
    taken_at: float


def check_frames(frames: Any) -> None:
    """Raise TypeError for what cannot be frames. One path would be an iterable, too: of its letters."""
    iterable = hasattr(frames, "__iter__") or hasattr(frames, "__getitem__")
    if isinstance(frames, str | bytes | PathLike) or not (iterable or callable(frames)):
        raise TypeError(
            f"frames is {shown(frames)}; give an iterable of paths, PIL images, arrays or Video(path).frames(), or a "
            "function of the number of frames to skip that returns one"
        )


class Source:
    """Iterable of `Frame`, once.

    frames: an iterable, or a function that returns one without its first n frames (`frames(n)`); with an iterable, a
        resumed stream takes and discards its first frames.
    skip: the number of frames to skip.
    room: number of frames to buffer.
    mode, size, patch_size: as in `fit_image`.
    max_pixels: the largest image that is decoded.
    fast_jpeg: as in `load_images`.
    shape: (H, W) of the network's images so far; None if the first frame decides.

    Warns once of each kind about 16-bit images that use fewer bits and EXIF data that cannot be read. Pillow itself
    warns about truncated EXIF data: warning filters are global to the process, and a stream that yields frames in
    between must not hold them (see `images.pillow_warnings`).
    """

    def __init__(
        self,
        frames: Frames,
        *,
        mode: Mode,
        size: int,
        patch_size: int,
        max_pixels: int | None = None,
        fast_jpeg: bool = False,
        skip: int = 0,
        shape: tuple[int, int] | None = None,
        room: int = 8,
    ) -> None:
        self._frames, self._skip, self._room = frames, skip, room
        self._fit: dict[str, Any] = {"mode": mode, "size": size, "patch_size": patch_size}
        self._decode: dict[str, Any] = {"max_pixels": max_pixels, "size": size, "fast_jpeg": fast_jpeg}
        self.shape = shape
        self._remarked: set[str] = set()

    def __iter__(self) -> Iterator[Frame]:
        with self.begun() as frames:
            yield from frames

    @contextmanager
    def begun(self) -> Iterator[Iterator[Frame]]:
        """The frames, decoded in the background from now until the block ends."""
        with begun(self._fitted, self._take(), results=self._room) as frames:
            yield self._checked(frames)

    def _checked(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        for frame in frames:
            for remark in frame.remarks:
                if remark not in self._remarked:
                    warnings.warn(f"{frame.name} {remark}; this is said of the first such frame alone", stacklevel=2)
            self._remarked.update(frame.remarks)
            yield self._of_one_size(frame)

    def _take(self) -> Iterator[_Taken]:
        if callable(self._frames):
            items: Iterable[Any] = self._frames(self._skip)
        else:
            items = islice(self._frames, self._skip, None)
        for number, item in enumerate(items):
            yield _Taken(self._skip + number, item, time.perf_counter())

    def _fitted(self, taken: _Taken) -> Frame:
        name, seconds, file = f"frame_{taken.index:06d}.png", None, None
        item, alpha, original = taken.item, None, None
        remarks: tuple[str, ...] = ()
        if hasattr(item, "image") and hasattr(item, "seconds"):
            name, seconds, item = item.name, item.seconds, item.image
        if isinstance(item, str | PathLike):
            file = Path(item)
            decoded = decode_for_another(file, **self._decode)
            name, item, alpha, original = str(item), decoded.pixels.rgb, decoded.pixels.alpha, decoded.size
            remarks = _remarks(decoded)
        elif isinstance(item, np.ndarray):
            if item.dtype != np.uint8 or item.ndim != 3 or item.shape[2] != 3 or not item.size:
                raise TypeError(
                    f"frame {taken.index} is {item.dtype} {item.shape}; arrays must be uint8 [H, W, 3], RGB"
                )
            item = Image.fromarray(item)
        elif not isinstance(item, Image.Image):
            raise TypeError(
                f"frame {taken.index} is a {type(item).__name__}; give paths, PIL images, uint8 arrays [H, W, 3] or "
                "frames of a Video"
            )
        pixels, transform = fit_image(as_rgb(item), **self._fit, alpha=alpha, original_size=original)
        path = None if file is None else file.absolute()
        return Frame(taken.index, name, seconds, path, taken.taken_at, pixels, transform, remarks)

    def _of_one_size(self, frame: Frame) -> Frame:
        """The first frame determines the size; smaller ones are padded with white."""
        found = (frame.pixels.shape[1], frame.pixels.shape[2])
        self.shape = shape = self.shape or found
        if found == shape:
            return frame
        if found[0] > shape[0] or found[1] > shape[1]:
            raise ValueError(
                f"{frame.name} becomes {found[0]} x {found[1]} pixels (height x width), and the stream began with "
                f"{shape[0]} x {shape[1]}: put the largest first, or use mode='pad', where all are squares"
            )
        return replace(frame, pixels=pad_white(frame.pixels, shape), transform=frame.transform.padded_to(shape))


def _remarks(decoded: Decoded) -> tuple[str, ...]:
    found = []
    if bits := narrow_bits(decoded.pixels.largest):
        found.append(f"has 16 bits and uses {bits}: it is read as that, nearly without contrast; scale it to 16 bits")
    if not decoded.exif_readable:
        found.append("has EXIF data that cannot be read, and is taken as it is stored")
    return tuple(found)
