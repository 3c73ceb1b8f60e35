"""The colour table is even to the eye, and the range ignores outliers and gaps."""

import numpy as np

from vggt_int8.export.color import NO_DATA, color_table, colorize, colorize_depth, robust_range

# The published forward matrices: the code under test uses the inverse ones.
TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def oklab(srgb: np.ndarray) -> np.ndarray:
    """sRGB uint8 -> OKLab."""
    x = srgb / 255
    linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ TO_LMS.T) @ TO_LAB.T


def test_lightness_and_colour_change_evenly() -> None:
    path = oklab(color_table())[::8]
    lightness_steps = np.diff(path[:, 0])
    colour_steps = np.linalg.norm(np.diff(path, axis=0), axis=-1)
    assert lightness_steps.min() > 0
    assert lightness_steps.max() < 1.25 * lightness_steps.min()
    assert colour_steps.max() < 1.25 * colour_steps.min()


def test_colours_are_as_strong_as_srgb_allows() -> None:
    """Seven eighths of the largest chroma inside the cube, found by trying them all, and averaged over kinks."""
    t = np.linspace(0, 1, 256)
    lightness, hue = 0.22 + 0.74 * t, np.deg2rad(280 + 190 * t)
    chroma = np.linspace(0, 0.19, 1901)[:, None]
    lab = np.stack(np.broadcast_arrays(lightness, chroma * np.cos(hue), chroma * np.sin(hue)), axis=-1)
    linear = (lab @ np.linalg.inv(TO_LAB).T) ** 3 @ np.linalg.inv(TO_LMS).T
    inside = ((linear >= 0) & (linear <= 1)).all(axis=-1)
    largest = np.where(inside, chroma, 0).max(axis=0)
    window = np.hanning(67)[1:-1] / np.hanning(67).sum()
    want = 0.875 * np.convolve(np.pad(largest, 32, mode="edge"), window, mode="valid")
    got = oklab(color_table())
    assert np.abs(got[:, 0] - lightness).max() < 0.004, "one step of 8 bits"
    assert np.abs(np.linalg.norm(got[:, 1:], axis=-1) - want).max() < 0.004
    turned = np.arctan2(got[:, 2], got[:, 1]) - hue
    assert np.abs(np.angle(np.exp(1j * turned))).max() < 0.06


def test_all_colours_differ_and_none_is_gray() -> None:
    table = color_table()
    assert table.shape == (256, 3)
    assert len(np.unique(table, axis=0)) == 256
    chroma = np.linalg.norm(oklab(table)[:, 1:], axis=-1)
    assert chroma.min() > 0.03


def test_the_ends_are_cold_and_warm() -> None:
    dark, bright = color_table()[[0, 255]].astype(int)
    assert dark[2] > dark[0]
    assert dark[2] > dark[1]
    assert bright[0] > bright[2]
    assert bright[1] > bright[2]


def test_colorize_clamps_and_paints_gaps_gray() -> None:
    t = np.array([[0, 1, -5, 7, np.nan, np.inf]], dtype=np.float32)
    colors = colorize(t)[0]
    table = color_table()
    for i, expected in enumerate([table[0], table[255], table[0], table[255]]):
        assert (colors[i] == expected).all()
    assert (colors[4:] == NO_DATA).all()


def test_near_is_bright() -> None:
    near, far = colorize_depth(np.array([[1.0, 3.0]], dtype=np.float32), 1.0, 3.0)[0]
    assert (near == color_table()[255]).all()
    assert (far == color_table()[0]).all()


def test_robust_range() -> None:
    values = np.arange(101, dtype=np.float32)
    assert robust_range(values) == (2.0, 98.0)
    assert robust_range(np.append(values, [np.nan, np.inf, -np.inf]).astype(np.float32)) == (2.0, 98.0)
    assert robust_range(np.array([np.nan], dtype=np.float32)) == (0.0, 1.0)
    low, high = robust_range(np.full(10, -4, dtype=np.float32))
    assert low == -4
    assert high > low
