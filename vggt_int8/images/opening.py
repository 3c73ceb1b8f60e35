"""A file opened as an image, before any pixel is decoded: within limits, with errors that say what the file is."""

import re
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TypeVar

from PIL import Image, UnidentifiedImageError

from vggt_int8.images.formats import RAW_SUFFIXES, about_tiff, readable_formats, why_unreadable, words_for
from vggt_int8.images.planes import name_planes
from vggt_int8.plain_data import check_integer

MAX_PIXELS = 250_000_000  # 200-megapixel cameras of phones, with room
MAX_SIDE = 1_000_000  # a row of one pixel costs as much memory and time as a row of many
PILLOW_LIMIT = 89_478_485  # Image.MAX_IMAGE_PIXELS as Pillow ships it
_DNG_VERSION = 50706
_limit_lock = threading.Lock()
T = TypeVar("T")


@contextmanager
def opened(path: Path, source: Path | BytesIO, limit: int | None) -> Iterator[Image.Image]:
    """The image at its first frame, its kind and declared size checked."""
    mode = path.stat().st_mode
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in kinds.items() if test(mode)), "a device")
        raise ImageError(f"{path} is {kind}, not an image file")
    if path.stat().st_size == 0:
        raise ImageError(f"{path} is empty (0 bytes)")
    if path.suffix.lower() in RAW_SUFFIXES:  # many are TIFFs: Pillow would read the small preview in them
        raise ImageError(f"{path} cannot be read: {words_for(path.suffix)}")
    try:
        image = _open_up_to(limit, source)
    except Image.DecompressionBombError as error:
        raise _too_large(path, str(error), limit) from error
    with image:
        if max(image.size) > MAX_SIDE:
            raise ImageError(
                f"{path} is {image.width} x {image.height} pixels (width x height), but no side may be longer than "
                f"{MAX_SIDE}: cut it into pictures"
            )
        if limit is not None and image.width * image.height > limit:
            raise _too_large(path, f"{image.width * image.height} pixels", limit)
        if image.format == "TIFF" and _DNG_VERSION in getattr(image, "tag_v2", {}):
            raise ImageError(f"{path} cannot be read: {words_for('.dng')}")
        if not name_planes(image):
            raise ImageError(f"{path} {about_tiff(path)}")
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


def pixel_limit(max_pixels: int | None) -> int | None:
    """Pixels that are decoded at most; None: any number."""
    if max_pixels is not None:
        check_integer("max_pixels", max_pixels)
        if max_pixels < 1:
            raise ValueError(f"max_pixels is {max_pixels}; it must be at least 1")
        return max_pixels
    limit = _limit_of_the_program()
    return MAX_PIXELS if limit == PILLOW_LIMIT else limit


def _limit_of_the_program() -> int | None:
    with _limit_lock:  # else it may be the one of `_open_up_to` in another thread
        return Image.MAX_IMAGE_PIXELS


class ImageError(ValueError):
    """An image that is not read. The message says why, and which file it is."""


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
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
    except ImageError:
        raise
    except Exception as error:  # decoders raise many types
        if "MAX_TEXT" in str(error):
            raise
        raise _damaged(path, error) from error


def _too_large(path: Path, what: str, limit: int | None) -> ImageError:
    found = re.search(r"\d+ pixels", what)
    pillow = f", or `PIL.Image.MAX_IMAGE_PIXELS`, now {limit}" if limit == _limit_of_the_program() else ""
    return ImageError(
        f"{path} is too large: {found[0] if found else what}, where {limit} are the limit. Make it smaller, or if you "
        f"trust it raise the limit (max_pixels=, --max-megapixels{pillow})"
    )


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} cannot be decoded, it may be truncated or damaged: {error}")


def without_texts_if_too_large(path: Path, use: Callable[[Path | BytesIO], T]) -> T:
    """Pillow bounds what text and colour profiles of a PNG unpack to; neither is needed here."""
    try:
        return use(path)
    except ValueError as error:
        if "MAX_TEXT" not in str(error):
            raise
        return use(BytesIO(_png_without_texts(path)))


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
