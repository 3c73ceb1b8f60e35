"""Numbers as colours: one perceptual colour table, and the range that it spans.

The table is a path through OKLCH (Björn Ottosson, "A perceptual color space for image processing", 2020): the
lightness rises evenly while the hue turns from blue over magenta and red to yellow, so that equal steps look
equal, and the picture survives a print in gray. The chroma follows what sRGB can show.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Colors = NDArray[np.uint8]
Codes = NDArray[np.uint8]

UNKNOWN = 255  # entry of the palette where there is no number
NO_DATA = 128  # gray level where there is no number: the table itself has no gray
_LIGHTNESS = (0.22, 0.96)
_HUE_DEGREES = (280.0, 470.0)  # blue -> magenta -> red -> yellow (110)
_MAX_CHROMA = 0.19

_OKLAB_TO_LMS = np.array(
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
)
_LMS_TO_LINEAR_SRGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


@cache
def color_table() -> Colors:
    """[256, 3] uint8 sRGB, from dark (0) to bright (255)."""
    t = np.linspace(0, 1, 256)
    lightness = _LIGHTNESS[0] + t * (_LIGHTNESS[1] - _LIGHTNESS[0])
    hue = np.deg2rad(_HUE_DEGREES[0] + t * (_HUE_DEGREES[1] - _HUE_DEGREES[0]))
    low, high = np.zeros(256), np.full(256, _MAX_CHROMA)
    for _ in range(20):  # bisection: the largest chroma inside the sRGB cube
        middle = (low + high) / 2
        rgb = _oklch_to_linear_srgb(lightness, middle, hue)
        inside = ((rgb >= 0) & (rgb <= 1)).all(axis=-1)
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    # The limit has kinks at the cube's edges, which would show as bands: average them away, 1/8 inside.
    window = np.hanning(67)[1:-1]
    chroma = 0.875 * np.convolve(np.pad(low, 32, mode="edge"), window / window.sum(), mode="valid")
    linear = _oklch_to_linear_srgb(lightness, chroma, hue).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(encoded * 255).astype(np.uint8)


def colorize(t: Array) -> Colors:
    """[H, W] -> [H, W, 3] uint8: 0 dark, 1 bright, clamped between; gray where not finite."""
    known = np.isfinite(t)
    codes = np.round(np.where(known, t, 0).clip(0, 1) * 255).astype(np.uint8)
    return np.where(known[..., None], color_table()[codes], np.uint8(NO_DATA))


def color_codes(t: Array) -> Codes:
    """[H, W] -> [H, W] uint8, entries of `palette`: 0 dark to 254 bright, clamped between; 255 where not finite."""
    with np.errstate(invalid="ignore"):
        codes = (np.clip(t, 0, 1) * np.float32(UNKNOWN - 1) + np.float32(0.5)).astype(np.uint8)
    unknown = ~np.isfinite(t)
    if unknown.any():
        codes[unknown] = UNKNOWN
    return codes


@cache
def palette() -> bytes:
    """256 x RGB: the colour table in 255 steps, and gray for what is not known."""
    steps = np.round(np.linspace(0, 255, UNKNOWN)).astype(np.intp)
    return color_table()[steps].tobytes() + bytes([NO_DATA] * 3)


def robust_range(values: Array) -> tuple[float, float]:
    """2nd and 98th percentile of the finite values; never empty: (0, 1) without values, low < high always."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(finite, (2, 98)))
    return widened(low, high)


def widened(low: float, high: float) -> tuple[float, float]:
    """A range that is not empty: `high` a thousandth above `low` where both are one number."""
    return (low, high) if high > low else (low, low + max(abs(low), 1.0) * 1e-3)


def colorize_depth(depth: Array, near: float, far: float) -> Colors:
    """[H, W] -> [H, W, 3] uint8: near is bright and warm, far is dark and cold."""
    return colorize((far - depth) / (far - near))


def _oklch_to_linear_srgb(
    lightness: NDArray[np.float64], chroma: NDArray[np.float64], hue: NDArray[np.float64]
) -> NDArray[np.float64]:
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=-1)
    return (lab @ _OKLAB_TO_LMS.T) ** 3 @ _LMS_TO_LINEAR_SRGB.T
