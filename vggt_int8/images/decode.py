"""One image file -> upright 8-bit RGB and its alpha, in bounded memory, with errors that say what the file is.

Up to Pillow's own limit of 89 megapixels a file is decoded as it is. Larger photographs are read, too, up to
`MAX_PIXELS`: JPEG decodes at 1/2, 1/4 or 1/8 (Pillow's draft mode), other formats are reduced by a whole
factor. Pixels are converted in strips, so that beside the decoded pixels (4 bytes each) nothing large is held.

On request (`fast_jpeg`) any JPEG is decoded so, as far as 1.4 times the network's size remains: 12 megapixels are read
in a third of the time (docs/images.md). Its decoder leaves out the high frequencies of each 8 x 8 block, most of which
the resize that follows would take away.
"""

import re
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import TypeVar
from xml.etree import ElementTree

from PIL import Image, UnidentifiedImageError

from vggt_int8.images.formats import RAW_SUFFIXES, about_tiff, readable_formats, why_unreadable, words_for
from vggt_int8.images.pixels import Pixels, Stored, to_pixels
from vggt_int8.images.planes import name_planes
from vggt_int8.images.unheard import listening, unheard
from vggt_int8.plain_data import check_integer

MAX_PIXELS = 250_000_000  # 200-megapixel cameras of phones, with room
MAX_SIDE = 1_000_000  # a row of one pixel costs as much memory and time as a row of many
_PILLOW_LIMIT = 89_478_485  # Image.MAX_IMAGE_PIXELS as Pillow ships it
_REDUCED_ABOVE = _PILLOW_LIMIT
_LARGE_KEEPS, _FAST_KEEPS = 2.0, 1.4  # times the network's size that the shorter side has left, at least
_DRAFTED = ("JPEG", "MPO")
_STRIP_PIXELS = 1 << 24
_WIDTH, _HEIGHT, _ORIENTATION, _DNG_VERSION = 0x0100, 0x0101, 0x0112, 50706
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
_limit_lock = threading.Lock()
T = TypeVar("T")


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
    """One image file -> 8-bit RGB: EXIF orientation applied, alpha composed on white, first frame only.

    max_pixels: the largest number of pixels that is decoded; by default `MAX_PIXELS`, or what the program has set
    as `PIL.Image.MAX_IMAGE_PIXELS`. Raises as `load_images` does.
    """
    return decode_image(Path(path), max_pixels=max_pixels).pixels.rgb


def read_header(path: Path, *, max_pixels: int | None = None) -> Header:
    """Open a file as an image without decoding it. Raises as `open_image`, but for damage behind the header."""
    limit = _limit(max_pixels)
    with unheard():
        header, has_white = _without_texts_if_too_large(path, lambda source: _read_header(path, source, limit))
    if not has_white:
        decode_image(path, max_pixels=max_pixels)  # raises, with the range that it finds
    return header


def read_orientation(path: Path) -> tuple[int, tuple[int, int]]:
    """EXIF orientation of a file, 1 to 8 (1 where none can be read), and its size (H, W) as it is looked at.

    Raises as `open_image`, but for damage behind the header, and whatever its size.
    """

    def look(source: Path | BytesIO) -> tuple[int, tuple[int, int]]:
        with _named_errors(path), _opened(path, source, None) as image:
            orientation, size = _orientation(image) or 1, _stored_size(image)
        return orientation, size[::-1] if _UPRIGHT.get(orientation) in _SIDEWAYS else size

    with unheard():
        return _without_texts_if_too_large(path, look)


def decode_image(
    path: Path, *, max_pixels: int | None = None, size: int | None = None, fast_jpeg: bool = False
) -> Decoded:
    """size: of the network's images; photographs above Pillow's limit are reduced towards it, and every JPEG if it may
    be fast. None: nothing is reduced.
    """
    with unheard():
        return decode_for_another(path, max_pixels=max_pixels, size=size, fast_jpeg=fast_jpeg)


def decode_for_another(
    path: Path, *, max_pixels: int | None = None, size: int | None = None, fast_jpeg: bool = False
) -> Decoded:
    """`decode_image` in a thread that works for another: unless that is in `unheard`, Pillow's warnings are shown."""
    limit = _limit(max_pixels)
    return _without_texts_if_too_large(path, lambda source: _decode(path, source, limit, size, fast_jpeg))


def _without_texts_if_too_large(path: Path, use: Callable[[Path | BytesIO], T]) -> T:
    """Pillow bounds what text and colour profiles of a PNG unpack to; neither is needed here."""
    try:
        return use(path)
    except ValueError as error:
        if "MAX_TEXT" not in str(error):
            raise
        return use(BytesIO(_png_without_texts(path)))


def _read_header(path: Path, source: Path | BytesIO, limit: int | None) -> tuple[Header, bool]:
    """And whether it is known which value is white."""
    with _named_errors(path), _opened(path, source, limit) as image:
        header = Header(str(image.format), _stored_size(image), getattr(image, "n_frames", 1))
        return header, Stored.of(image).has_white(image.mode)


def _decode(path: Path, source: Path | BytesIO, limit: int | None, wanted: int | None, fast_jpeg: bool) -> Decoded:
    with ExitStack() as held:
        with _named_errors(path), _opened(path, source, limit) as image:
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
    """Bounds the pixels that all threads together hold decoded; one picture always finds room."""

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
    with listening() as cut_off:
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
    """Have a JPEG decoded smaller, if it is large or may be; by how much pixels are to be reduced once they are there.

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


@contextmanager
def _opened(path: Path, source: Path | BytesIO, limit: int | None) -> Iterator[Image.Image]:
    """The image at its first frame, its kind and declared size checked."""
    mode = path.stat().st_mode
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in kinds.items() if test(mode)), "a device")
        raise _RefusedError(f"{path} is {kind}, not an image file")
    if path.stat().st_size == 0:
        raise _RefusedError(f"{path} is empty (0 bytes)")
    if path.suffix.lower() in RAW_SUFFIXES:  # many are TIFFs: Pillow would read the small preview in them
        raise _RefusedError(f"{path} cannot be read: {words_for(path.suffix)}")
    try:
        image = _open_up_to(limit, source)
    except Image.DecompressionBombError as error:
        raise _too_large(path, str(error), limit) from error
    with image:
        if max(image.size) > MAX_SIDE:
            raise _RefusedError(
                f"{path} is {image.width} x {image.height} pixels (width x height), but no side may be longer than "
                f"{MAX_SIDE}: cut it into pictures"
            )
        if limit is not None and image.width * image.height > limit:
            raise _too_large(path, f"{image.width * image.height} pixels", limit)
        if image.format == "TIFF" and _DNG_VERSION in getattr(image, "tag_v2", {}):
            raise _RefusedError(f"{path} cannot be read: {words_for('.dng')}")
        if not name_planes(image):
            raise _RefusedError(f"{path} {about_tiff(path)}")
        yield image


def _open_up_to(limit: int | None, source: Path | BytesIO) -> Image.Image:
    # Pillow knows one limit for the whole process, warns above it and refuses twice of it. It is ours while the
    # header is read: some formats check more than the image's size against it (tiles, frames).
    with _limit_lock:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None if limit is None else (limit + 1) // 2
        try:
            return Image.open(source, formats=readable_formats())
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _limit(max_pixels: int | None) -> int | None:
    """Pixels that are decoded at most; None: any number."""
    if max_pixels is not None:
        check_integer("max_pixels", max_pixels)
        if max_pixels < 1:
            raise ValueError(f"max_pixels is {max_pixels}; it must be at least 1")
        return max_pixels
    limit = _limit_of_the_program()
    return MAX_PIXELS if limit == _PILLOW_LIMIT else limit


def _limit_of_the_program() -> int | None:
    with _limit_lock:  # else it may be the one of `_open_up_to` in another thread
        return Image.MAX_IMAGE_PIXELS


class _RefusedError(ValueError):
    """Already says what is wrong, and with which file."""


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Whatever opening or decoding raises becomes an error that names the file, and calls damaged what is damaged."""
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(path, str(error), _limit_of_the_program()) from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} {why_unreadable(path)}") from error
    except MemoryError as error:
        raise MemoryError(f"there is not enough memory to decode {path}") from error
    except OSError as error:
        if error.errno is not None:  # of the file system: permission, gone, disk
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise _damaged(path, error) from error
    except _RefusedError:
        raise
    except Exception as error:  # decoders raise many types
        if "MAX_TEXT" in str(error):
            raise
        raise _damaged(path, error) from error


def _too_large(path: Path, what: str, limit: int | None) -> _RefusedError:
    found = re.search(r"\d+ pixels", what)
    pillow = f", or `PIL.Image.MAX_IMAGE_PIXELS`, now {limit}" if limit == _limit_of_the_program() else ""
    return _RefusedError(
        f"{path} is too large: {found[0] if found else what}, where {limit} are the limit. Make it smaller, or if you "
        f"trust it raise the limit (max_pixels=, --max-megapixels{pillow})"
    )


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} cannot be decoded, it may be truncated or damaged: {error}")


def _png_without_texts(path: Path) -> bytes:
    """The file without the chunks that hold texts, colour profiles and XMP."""
    whole = path.read_bytes()
    kept, at = [whole[:8]], 8
    while at + 8 <= len(whole):
        end = at + 12 + int.from_bytes(whole[at : at + 4], "big")
        if whole[at + 4 : at + 8] not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            kept.append(whole[at:end])
        at = end
    return b"".join(kept)
