from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from vggt_int8.export.png import palette_png

PALETTE = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (28, 42)])
def test_other_readers_see_codes_palette_and_description(shape: tuple[int, int]) -> None:
    codes = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)  # differences of both signs
    with Image.open(io.BytesIO(palette_png(codes, PALETTE.tobytes(), "depth: 1 (bright) to 2 (dark)"))) as picture:
        picture.load()
        assert picture.mode == "P"
        assert picture.text == {"Description": "depth: 1 (bright) to 2 (dark)"}
        assert np.array_equal(np.asarray(picture), codes)
        assert np.array_equal(np.asarray(picture.convert("RGB")), PALETTE[codes])


def test_smooth_maps_are_smaller_than_without_differences_of_rows() -> None:
    rows, columns = np.mgrid[:98, :130]
    codes = (120 + 60 * np.sin(rows / 17) * np.cos(columns / 22)).astype(np.uint8)
    picture, stream = Image.fromarray(codes), io.BytesIO()
    picture.putpalette(PALETTE.tobytes())
    picture.save(stream, "PNG", compress_level=6)
    assert len(palette_png(codes, PALETTE.tobytes(), "")) < len(stream.getvalue())
