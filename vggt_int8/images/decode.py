"""Decodes one image file to upright 8-bit RGB and its alpha, in bounded memory.

Up to Pillow's own limit of 89 megapixels a file is decoded as it is. Larger photographs are supported up to
`MAX_PIXELS`: JPEG decodes at 1/2, 1/4 or 1/8 (Pillow's draft mode), other formats are reduced by an integer factor.
Pixels are converted in strips, so that little memory is needed beside the decoded pixels (4 bytes each).

On request (`fast_jpeg`) any JPEG is decoded that way, as long as 1.4 times the network's size remains: 12 megapixels
are read in a third of the time (docs/images.md). The decoder then omits the high frequencies of each 8 x 8 block, most
of which the following resize would remove.
"""

import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO
from os import PathLike
from pathlib import Path
from xml.etree import ElementTree

from PIL import Image

from vggt_int8.images.opening import (
    MAX_PIXELS,
    PILLOW_LIMIT,
    named_errors,
    opened,
    pixel_limit,
    without_texts_if_too_large,
)
from vggt_int8.images.pillow_warnings import collected_warnings, pillow_silenced
from vggt_int8.images.pixels import Pixels, Stored, to_pixels

_REDUCED_ABOVE = PILLOW_LIMIT
_LARGE_KEEPS, _FAST_KEEPS = 2.0, 1.4  # times the network's size that the shorter side has left, at least
_DRAFTED = ("JPEG", "MPO")
_STRIP_PIXELS = 1 << 24
_WIDTH, _HEIGHT, _ORIENTATION = 0x0100, 0x0101, 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = {_UPRIGHT[orientation] for orientation in (5, 6, 7, 8)}


@dataclass(frozen=True)
class Header:
    """What is known of an image before its pixels are decoded."""

    format: str  # Pillow's name
    size: tuple[int, int]  # (H, W) as stored
    frames: int


@dataclass(frozen=True)
class Decoded:
    """One upright image. `size` is the file's (H, W); the pixels may be a reduced version of it."""

    pixels: Pixels
    size: tuple[int, int]
    exif_readable: bool  # if not, the image is as it was stored


def open_image(path: str | PathLike[str], *, max_pixels: int | None = None) -> Image.Image:
    """Decode an image file to 8-bit RGB: EXIF orientation applied, alpha composited on white, first frame only.

    max_pixels: the largest number of pixels that is decoded; by default `MAX_PIXELS`, or the program's own setting of
        `PIL.Image.MAX_IMAGE_PIXELS`.

    Raises as `load_images` does.
    """
    return decode_image(Path(path), max_pixels=max_pixels).pixels.rgb


def read_header(path: Path, *, max_pixels: int | None = None) -> Header:
    """Open a file as an image without decoding it. Raises as `open_image` does, except for corruption after the
    header.
    """
    limit = pixel_limit(max_pixels)
    with pillow_silenced():
        header, has_white = without_texts_if_too_large(path, lambda source: _read_header(path, source, limit))
    if not has_white:
        decode_image(path, max_pixels=max_pixels)  # raises, with the range that it finds
    return header


def read_orientation(path: Path) -> tuple[int, tuple[int, int]]:
    """EXIF orientation of a file, 1 to 8 (1 if none can be read), and its upright size (H, W).

    Raises as `open_image` does, except for corruption after the header, and regardless of its size.
    """

    def look(source: Path | BytesIO) -> tuple[int, tuple[int, int]]:
        with named_errors(path), opened(path, source, None) as image:
            orientation, size = _orientation(image) or 1, _stored_size(image)
        return orientation, size[::-1] if _UPRIGHT.get(orientation) in _SIDEWAYS else size

    with pillow_silenced():
        return without_texts_if_too_large(path, look)


def decode_image(
    path: Path, *, max_pixels: int | None = None, size: int | None = None, fast_jpeg: bool = False
) -> Decoded:
    """size: of the network's images; photographs above Pillow's limit are reduced towards it, and with fast_jpeg every
    JPEG. None: nothing is reduced.
    """
    with pillow_silenced():
        return decode_for_another(path, max_pixels=max_pixels, size=size, fast_jpeg=fast_jpeg)


def decode_for_another(
    path: Path, *, max_pixels: int | None = None, size: int | None = None, fast_jpeg: bool = False
) -> Decoded:
    """`decode_image` for worker threads: the thread that starts them silences Pillow's warnings (`pillow_silenced`)."""
    limit = pixel_limit(max_pixels)
    return without_texts_if_too_large(path, lambda source: _decode(path, source, limit, size, fast_jpeg))


def _read_header(path: Path, source: Path | BytesIO, limit: int | None) -> tuple[Header, bool]:
    """And whether it is known which value is white."""
    with named_errors(path), opened(path, source, limit) as image:
        header = Header(str(image.format), _stored_size(image), getattr(image, "n_frames", 1))
        return header, Stored.of(image).has_white(image.mode)


def _decode(path: Path, source: Path | BytesIO, limit: int | None, wanted: int | None, fast_jpeg: bool) -> Decoded:
    with ExitStack() as held:
        with named_errors(path), opened(path, source, limit) as image:
            held.enter_context(_ROOM.of(image.width * image.height))
            stored = Stored.of(image)
            full = image.size
            factor = 1 if wanted is None else _draft(image, wanted, fast_jpeg)
            drafted = image.size != full
            image.load()
            orientation = _orientation(image)
            size = full if drafted else image.size  # a TIFF turns itself while it loads
        try:
            pixels = _in_strips(image, stored, factor)
        except ValueError as error:
            raise ValueError(f"{path} cannot be used: {error}") from error
    turn = _UPRIGHT.get(orientation)  # type: ignore[arg-type]
    if turn is not None:
        alpha = pixels.alpha and pixels.alpha.transpose(turn)
        pixels = Pixels(pixels.rgb.transpose(turn), alpha, pixels.largest)
        size = size[::-1] if turn in _SIDEWAYS else size
    return Decoded(pixels, (size[1], size[0]), orientation is not None)


class _Room:
    """Bounds the number of decoded pixels that all threads together hold; a single image is always admitted."""

    def __init__(self, most: int) -> None:
        self._most, self._held, self._changed = most, 0, threading.Condition()

    @contextmanager
    def of(self, pixels: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + pixels <= self._most)
            self._held += pixels
        try:
            yield
        finally:
            with self._changed:
                self._held -= pixels
                self._changed.notify_all()


_ROOM = _Room(MAX_PIXELS)


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """(H, W) before orientation is applied, which Pillow does to a TIFF's size when it opens it."""
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        return tags[_HEIGHT], tags[_WIDTH]
    return image.height, image.width


def _orientation(image: Image.Image) -> int | None:
    """What EXIF (or XMP) says, 1 to 8; None if it cannot be read. That is no damage of the picture."""
    with collected_warnings() as cut_off:
        try:
            found = image.getexif().get(_ORIENTATION)
            if isinstance(stored := image.info.get("exif"), bytes):
                Image.Exif().load(stored)  # again: a JPEG's was read while it was opened, and errors were dropped
        except (SyntaxError, ValueError, TypeError, KeyError, OverflowError, struct.error, ElementTree.ParseError):
            return None
    if isinstance(found, int) and 1 <= found <= 8:
        return found
    return None if cut_off or isinstance(found, str | bytes) else 1


def _draft(image: Image.Image, wanted: int, fast_jpeg: bool) -> int:
    """Let a JPEG be decoded smaller, if it is large or fast_jpeg is set; returns the remaining reduction of its pixels.

    wanted: the size of the network's images.
    """
    large = image.width * image.height > _REDUCED_ABOVE
    fast = fast_jpeg and image.format in _DRAFTED
    if not (large or fast):
        return 1
    at_least = wanted * (_FAST_KEEPS if fast else _LARGE_KEEPS)
    factor = _reduction(image.size, at_least)
    image.draft(None, (image.width // factor, image.height // factor))
    return 1 if fast else _reduction(image.size, at_least)


def _reduction(size: tuple[int, int], at_least: float) -> int:
    """As JPEG has it: sides of photographs are multiples of 8, so no cell of pixels is cut at an edge."""
    return next((factor for factor in (8, 4, 2) if min(size) >= factor * at_least), 1)


def _in_strips(image: Image.Image, stored: Stored, factor: int) -> Pixels:
    """`to_pixels`, reduced by `factor`; large images strip by strip."""
    if factor == 1 and image.width * image.height <= _STRIP_PIXELS:
        return to_pixels(image, stored)
    rows = max(_STRIP_PIXELS // image.width // factor, 1) * factor
    size = (-(-image.width // factor), -(-image.height // factor))
    rgb, alpha, transparent, largest = Image.new("RGB", size), Image.new("L", size, 255), False, None
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        strip.info = image.info
        part = to_pixels(strip, stored)
        rgb.paste(part.rgb.reduce(factor), (0, top // factor))
        if part.alpha is not None:
            alpha.paste(part.alpha.reduce(factor), (0, top // factor))
            transparent = True
        if part.largest is not None:
            largest = max(largest or 0, part.largest)
    return Pixels(rgb, alpha if transparent else None, largest)
