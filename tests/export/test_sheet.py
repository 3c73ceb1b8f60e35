"""The side-by-side picture uses one colour range, so that equal depths look equal in every row."""

import numpy as np
import pytest
import torch

from vggt_int8.export.color import color_table
from vggt_int8.export.sheet import depth_sheet


def colours_in(sheet: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(colour) for colour in sheet.reshape(-1, 3)}


def test_rows_share_one_range() -> None:
    near = torch.full((2, 14, 20), 1.0)
    far = torch.full((2, 14, 20, 1), 3.0)
    sheet = np.asarray(depth_sheet({"fp32": near, "int8": far.squeeze(-1)}))
    half = sheet.shape[0] // 2
    bright, dark = tuple(color_table()[255]), tuple(color_table()[0])
    assert bright in colours_in(sheet[:half])
    assert dark not in colours_in(sheet[:half])
    assert dark in colours_in(sheet[half:])
    assert np.array_equal(sheet, np.asarray(depth_sheet({"fp32": near[..., None], "int8": far})))


def test_photos_come_first_and_tiles_do_not_overlap() -> None:
    depth = torch.rand(3, 14, 28, generator=torch.Generator().manual_seed(0)) + 1
    photos = torch.zeros(3, 3, 14, 28)
    photos[:, 1] = 1
    without = depth_sheet({"fp32": depth})
    sheet = depth_sheet({"fp32": depth}, photos)
    assert sheet.width == without.width
    assert sheet.height > without.height
    green = (np.asarray(sheet) == (0, 255, 0)).all(axis=-1)
    assert green.sum() == 3 * (14 * 6) * (28 * 6)
    assert not green[sheet.height // 2 :].any()


def test_errors_have_their_own_range_and_rows_at_the_end() -> None:
    depth = torch.full((1, 14, 20), 2.0)
    small = torch.zeros(1, 14, 20)
    small[:, :, 10:] = 1e-3
    sheet = np.asarray(depth_sheet({"fp32": depth}, errors={"int8": small, "other": 100 * small}))
    without = np.asarray(depth_sheet({"fp32": depth}))
    assert sheet.shape[0] - without.shape[0] == 2 * (without.shape[0] - 8 - 16)
    dark, bright = (tuple(color_table()[code]) for code in (0, 255))
    for part in np.array_split(sheet[without.shape[0] - 16 : -16], 2):
        assert {dark, bright} <= colours_in(part)


def test_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one shape.*'b': \(1, 4, 5\)"):
        depth_sheet({"a": torch.ones(1, 4, 4), "b": torch.ones(1, 4, 5)})
    with pytest.raises(ValueError, match=r"one shape.*'e': \(1, 2, 2\)"):
        depth_sheet({"a": torch.ones(1, 4, 4)}, errors={"e": torch.ones(1, 2, 2)})
    with pytest.raises(ValueError, match="must be there"):
        depth_sheet({})
