"""TIFFs with a plane for each colour: read as what they are, or refused, whatever Pillow makes of them."""

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import TiffImagePlugin

from vggt_int8.images import open_image

RGB, CMYK, YCBCR, LAB = 2, 5, 6, 8
COLOURS = np.stack(np.broadcast_arrays(np.linspace(0, 65535, 16), np.linspace(0, 65535, 12)[:, None], 257 * 90), -1)


def planar(path: Path, samples: np.ndarray, photometric: int, *, order: str = "<", deflate: bool = False) -> Path:
    """[H, W, C] -> a TIFF with PlanarConfiguration 2."""
    height, width, depth = samples.shape
    planes = [samples[..., i].astype(samples.dtype.newbyteorder(order)).tobytes() for i in range(depth)]
    if deflate:
        planes = [zlib.compress(plane) for plane in planes]
    directory = TiffImagePlugin.ImageFileDirectory_v2(b"II*\0\0\0\0\0" if order == "<" else b"MM\0*\0\0\0\0")
    directory[256], directory[257], directory[258] = width, height, (samples.dtype.itemsize * 8,) * depth
    directory[259], directory[262], directory[277], directory[284] = 8 if deflate else 1, photometric, depth, 2
    directory[278], directory[279] = height, tuple(map(len, planes))
    directory[273] = tuple(sum(map(len, planes[:i])) for i in range(depth))  # from the directory's end
    if depth == 4 and photometric == RGB:
        directory[338] = 2
    file = io.BytesIO()
    directory.save(file)
    path.write_bytes(file.getvalue() + b"".join(planes))
    return path


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_planes_of_colours(tmp_path: Path, kind: type, order: str, deflate: bool) -> None:
    samples = (COLOURS / (257 if kind is np.uint8 else 1)).astype(kind)
    opaque = np.full_like(samples[..., :1], np.iinfo(kind).max)
    expected = (COLOURS.astype(np.uint16) >> 8).astype(int)
    for name, pixels in (("rgb.tif", samples), ("rgba.tif", np.concatenate([samples, opaque], -1))):
        read = np.asarray(open_image(planar(tmp_path / name, pixels, RGB, order=order, deflate=deflate)))
        assert np.abs(read - expected).max() <= 1


@pytest.mark.parametrize(
    ("kind", "photometric", "depth"),
    [(np.uint16, CMYK, 4), (np.uint16, 1, 1), (np.uint8, 0, 1), (np.uint8, LAB, 3), (np.uint8, YCBCR, 3)],
)
def test_what_pillow_would_misread_is_refused_and_is_no_damage(
    tmp_path: Path, kind: type, photometric: int, depth: int
) -> None:
    samples = np.zeros((12, 16, depth), kind)
    with pytest.raises(ValueError, match=r"a\.tif is a TIFF that .* PlanarConfiguration 2, .*: convert it") as raised:
        open_image(planar(tmp_path / "a.tif", samples, photometric))
    assert "damaged" not in str(raised.value)


def test_planes_of_gray_and_cmyk(tmp_path: Path) -> None:
    gray = (COLOURS[..., :1] / 257).astype(np.uint8)
    assert np.array_equal(np.asarray(open_image(planar(tmp_path / "gray.tif", gray, 1))), np.repeat(gray, 3, -1))
    inks = np.concatenate([255 - (COLOURS / 257).astype(np.uint8), np.zeros_like(gray)], -1)
    read = np.asarray(open_image(planar(tmp_path / "inks.tif", inks, CMYK))).astype(int)
    assert np.abs(read - COLOURS / 257).max() <= 1
