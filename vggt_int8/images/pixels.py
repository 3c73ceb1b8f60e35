"""Converts what Pillow decoded to 8-bit RGB on white, and alpha. Nothing is guessed: an unknown range is refused.

| stored as | Pillow's mode | becomes |
|---|---|---|
| 1 to 8 bits: gray, palette, RGB, YCbCr, HSV, LAB, CMYK and YCCK (as Adobe inverts them) | 1, L, P, RGB… | RGB |
| the same with alpha, a colour key or transparent palette entries | LA, PA, RGBA, P… | composed on white, alpha kept |
| 16 bits gray, either byte order: PNG, TIFF, JPEG 2000; PGM of any maxval | I;16, I;16B; PGM: I | v / 257 |
| the same in a TIFF that counts from white (MinIsWhite), which Pillow inverts up to 8 bits | I;16 | (65535 - v) / 257 |
| 16 bits RGB, gray with alpha, CMYK: PNG, TIFF; SGI | RGB, LA, CMYK… | the upper 8 bits: all that Pillow reads |
| 16 bits RGB: PPM of any maxval; 10 and 12 bits: AVIF | RGB | 8 bits, rounded by Pillow |
| signed 8 or 16 bits, 32 bits, floats: TIFF, PFM, FITS | L, I, F | refused: no known white |

16 bits that hold no more than 10, 12 or 14 bits stay as they are stored, so nearly black, and are reported: which
number is white is a property of the camera, not of one picture.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

OPAQUE_FROM = 128  # of 255: a pixel that is less than half there is transparent
_PHOTOMETRIC, _SAMPLE_FORMAT = 262, 339  # TIFF tags
_MIN_IS_WHITE, _UNSIGNED = 0, (1, 4)  # 4: undefined, which means unsigned to every reader


@dataclass(frozen=True)
class Stored:
    """What only an image's header says; read before its pixels are."""

    format: str
    wide_color: bool  # 16 bits a sample, of which Pillow keeps the upper 8
    min_is_white: bool
    signed: bool
    gray_bits: int | None  # 2 or 4 of a gray PNG, whose colour key Pillow leaves in the file's range

    @classmethod
    def of(cls, image: Image.Image) -> "Stored":
        tags: Any = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
        kinds = tags.get(_SAMPLE_FORMAT, 1)
        kinds = kinds if isinstance(kinds, tuple) else (kinds,)
        # The raw mode ("RGB;16B") stands in the tiles, which decoding empties.
        raw_modes = [str(tile[3]) for tile in getattr(image, "tile", [])]
        wide = any(";16" in mode for mode in raw_modes) or _is_wide_sgi(image)
        return cls(
            format=str(image.format),
            wide_color=wide and not image.mode.startswith("I"),
            min_is_white=tags.get(_PHOTOMETRIC) == _MIN_IS_WHITE,
            signed=any(kind not in _UNSIGNED for kind in kinds) and image.mode not in ("I", "F"),
            gray_bits=next((bits for bits in (2, 4) if image.format == "PNG" and f"L;{bits}" in raw_modes), None),
        )

    def has_white(self, mode: str) -> bool:
        """False where no number is known to be white: floats, 32 bits, signed samples."""
        return not self.signed and (mode not in ("I", "F") or (mode == "I" and self.format in ("PNG", "PPM")))


def _is_wide_sgi(image: Image.Image) -> bool:
    """The decoders of SGI files are told of 16 bits by their name, or by the last argument."""
    tiles: Any = getattr(image, "tile", [])
    return any(tile.codec_name == "SGI16" or (tile.codec_name == "sgi_rle" and tile.args[-1] == 2) for tile in tiles)


@dataclass(frozen=True)
class Pixels:
    """One picture, or a part of it."""

    rgb: Image.Image
    alpha: Image.Image | None  # mode L; None where all is opaque
    largest: int | None  # of 16-bit samples; of those that Pillow cuts to 8 bits, the largest that it may have been


def to_pixels(image: Image.Image, stored: Stored) -> Pixels:
    """Raises ValueError, to follow the file's name, for pixels without a known white."""
    if not stored.has_white(image.mode) and not stored.signed:
        values = np.asarray(image)
        low, high = values.min(), values.max()
        raise ValueError(
            f"its pixels (Pillow mode {image.mode}) have no known range, they go from {low:g} to {high:g}; "
            "scale them and save it with 8 or 16 bits"
        )
    if stored.signed:
        raise ValueError("its samples are signed, so they have no known white; save it with 8 or 16 unsigned bits")
    if image.mode.startswith("I"):
        return _from_sixteen_bits(image, stored)
    if stored.wide_color and "transparency" in image.info and image.mode == "RGB":
        image = image.copy()  # the colour key has all 16 bits of each sample, the pixels only the upper 8
        image.info["transparency"] = tuple(value >> 8 for value in image.info["transparency"])
    key = image.info.get("transparency")
    if stored.gray_bits and isinstance(key, int) and key < 2**stored.gray_bits:
        image = image.copy()
        image.info["transparency"] = key * 255 // (2**stored.gray_bits - 1)
    largest = None
    if stored.wide_color and image.mode in ("L", "LA", "RGB", "RGBA"):
        colors = image.split()[: 3 if image.mode.startswith("RGB") else 1]  # alpha is full in narrow files, too
        largest = max(int(np.asarray(band).max()) for band in colors) * 256 + 255
    if not image.has_transparency_data:
        return Pixels(as_rgb(image), None, largest)
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    alpha = rgba.getchannel("A")
    transparent = bool(np.asarray(alpha).min() < 255)
    return Pixels(Image.alpha_composite(white, rgba).convert("RGB"), alpha if transparent else None, largest)


def as_rgb(image: Image.Image) -> Image.Image:
    """In mode RGB; itself where it is, for a copy of 12 megapixels takes a sixth of the time of reading them."""
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_sixteen_bits(image: Image.Image, stored: Stored) -> Pixels:
    """Pillow's own conversion would clip at 255 or drop the low byte."""
    wide = np.asarray(image).astype(np.float32)
    key = image.info.get("transparency")
    alpha = None
    if key is not None and (wide == key).any():
        alpha = Image.fromarray(np.where(wide == key, 0, 255).astype(np.uint8))
    largest = int(wide.max())
    if stored.min_is_white:
        wide = 65535 - wide
    gray = Image.fromarray(np.round(wide / 257).astype(np.uint8))
    if alpha is not None:
        gray.paste(255, mask=alpha.point(lambda value: 255 - value))
    return Pixels(gray.convert("RGB"), alpha, largest)


def narrow_bits(largest: int | None) -> int | None:
    """10, 12 or 14 where 16-bit samples need no more; None for whole ranges and for pictures that are black."""
    if not largest:
        return None
    return next((bits for bits in (10, 12, 14) if largest < 2**bits), None)
