"""Decoded frames -> 8-bit RGB as a player shows it; high dynamic range is tone-mapped.

Standard range: the file's own matrix and range. Without a matrix, that of its size: BT.709 from 720 rows or 1280
columns on, BT.601 below, as players do.

High dynamic range (PQ, SMPTE ST 2084; HLG, ARIB STD-B67 and BT.2100): display light in units of the reference white of
203 cd/m2 (BT.2408), BT.2020 primaries converted to BT.709. Values up to `_KNEE` of that white are unchanged; brighter
ones are rolled off towards 1 by one factor for all three colors, which preserves hues. The result is a picture, not
measured light.
"""

from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

_PQ, _HLG = 16, 18  # transfer characteristics by ITU-T H.273
_UNSPECIFIED_MATRIX, _ICTCP, _IPT_C2 = 2, 14, 15
_BT709, _BT601, _BT2020 = 1, 5, 9  # swscale's numbers of matrices
_WHITE = 203.0  # cd/m2
_HLG_PEAK, _HLG_GAMMA = 1000.0, 1.2  # a display of 1000 cd/m2, for which BT.2100 gives that gamma
_KNEE = 0.8
_TO_BT709 = np.array(  # BT.2087
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], dtype=np.float32
)
_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], dtype=np.float32)  # of BT.2020

TRANSFERS = {_PQ: "PQ", _HLG: "HLG"}


def to_rgb(frame: Any, aspect: Fraction | None = None) -> Image.Image:
    """A frame of PyAV -> RGB. aspect: of its samples, which are made square.

    Raises ValueError, to follow the file's name, for colours that cannot be shown.
    """
    if int(frame.colorspace) in (_ICTCP, _IPT_C2):
        raise ValueError("its colours (ICtCp) need metadata to be shown: export it as HEVC with BT.2020, or as SDR")
    width, height = square_size(frame, aspect)
    if int(frame.color_trc) not in TRANSFERS:
        rgb: Image.Image = frame.to_image(width=width, height=height, src_colorspace=_matrix(frame))
        return rgb
    # In planes: of 4:2:0 with an odd width swscale makes packed RGB of 16 bits in wrong colours, if the height stays.
    wide = frame.reformat(width=width, height=height, format="gbrp16le", src_colorspace=_BT2020)
    return Image.fromarray(tone_map(wide.to_ndarray(), TRANSFERS[int(frame.color_trc)]))


def sharpness(frame: Any) -> float:
    """How much a picture of PyAV holds of fine structure: the variance of its Laplacian at up to 640 columns."""
    width = min(frame.width, 640)
    gray = frame.reformat(
        width=width, height=max(frame.height * width // frame.width, 3), format="gray", interpolation="AREA"
    )
    values = gray.to_ndarray().astype(np.float32)
    inner = values[1:-1, 1:-1]
    around = values[:-2, 1:-1] + values[2:, 1:-1] + values[1:-1, :-2] + values[1:-1, 2:]
    return float((around - 4 * inner).var())


def tone_map(codes: np.ndarray, transfer: str) -> np.ndarray:
    """RGB of BT.2020 [H, W, 3] uint16 under "PQ" or "HLG" -> sRGB [H, W, 3] uint8; a strip at a time."""
    table = _light(transfer)
    out = np.empty(codes.shape, np.uint8)
    rows = max((1 << 20) // max(codes.shape[1], 1), 1)
    for top in range(0, len(codes), rows):
        light = table[codes[top : top + rows]]
        if transfer == "HLG":  # scene light; a display's gamma belongs to the luminance
            luminance = (light @ _LUMINANCE)[..., None]
            light = light * luminance ** (_HLG_GAMMA - 1) * (_HLG_PEAK / _WHITE)
        light = np.maximum(light @ _TO_BT709.T, 0)
        brightest = light.max(-1, keepdims=True)
        rolled = _KNEE + (1 - _KNEE) * -np.expm1(-(brightest - _KNEE) / (1 - _KNEE))
        light = np.where(brightest > _KNEE, light * (rolled / np.maximum(brightest, _KNEE)), light)
        srgb = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
        out[top : top + rows] = np.rint(srgb * 255)
    return out


@cache
def _light(transfer: str) -> np.ndarray:
    """fp32 [65536]: PQ codes -> light of the display over `_WHITE`; HLG codes -> light of the scene in [0, 1]."""
    code = np.linspace(0, 1, 1 << 16)
    if transfer == "PQ":
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
        root = code ** (1 / m2)
        light = 10000 / _WHITE * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)
    else:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
    return light.astype(np.float32)


def _matrix(frame: Any) -> int | None:
    """Of luma and colour differences, in swscale's number; None: what the frame says."""
    if int(frame.colorspace) != _UNSPECIFIED_MATRIX:
        return None
    return _BT709 if frame.height >= 720 or frame.width >= 1280 else _BT601


def square_size(frame: Any, aspect: Fraction | None) -> tuple[int, int]:
    """(W, H) with square pixels: the side that a sample aspect ratio (width over height) makes longer grows."""
    if not aspect or aspect == 1:
        return frame.width, frame.height
    if aspect > 1:
        return round(frame.width * aspect), frame.height
    return frame.width, round(frame.height / aspect)
