"""HEIC, AVIF and WebP as phones and browsers write them: upright, in 8 bits, with their alpha.

HEIC needs Pillow's plugin, which the extra `heif` brings.
"""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vggt_int8 import load_images
from vggt_int8.images import check_images, find_images
from vggt_int8.images.decode import decode_image

pillow_heif = pytest.importorskip("pillow_heif", reason="HEIC needs the extra heif")

# What is looked at, after turning what is stored by each EXIF orientation.
UPRIGHT = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).transpose(1, 0, 2),
    8: np.rot90,
}


def quarters(height: int = 48, width: int = 64) -> np.ndarray:
    """[H, W, 3]: red, green, blue and black quarters, so that no turn looks like another."""
    colors = np.zeros((height, width, 3), np.uint8)
    colors[: height // 2, : width // 2, 0] = 255
    colors[: height // 2, width // 2 :, 1] = 255
    colors[height // 2 :, : width // 2, 2] = 255
    return colors


@pytest.fixture(autouse=True)
def _heif_writer() -> None:
    pillow_heif.register_heif_opener()  # for saving; reading registers what it needs itself


@pytest.mark.parametrize("suffix", ["heic", "avif", "webp"])
def test_every_orientation_comes_out_upright(tmp_path: Path, suffix: str) -> None:
    for orientation, upright in UPRIGHT.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}.{suffix}"
        Image.fromarray(quarters()).save(path, exif=exif.tobytes(), quality=95)
        decoded = decode_image(path)
        wanted = upright(quarters()).astype(int)
        assert decoded.size == wanted.shape[:2], orientation
        difference = np.abs(np.asarray(decoded.pixels.rgb).astype(int) - wanted).mean()
        assert difference < 16, f"orientation {orientation}: {difference:.1f} of 255"  # any other turn: above 64


def test_heic_with_alpha_and_of_ten_bits(tmp_path: Path) -> None:
    image = Image.fromarray(quarters())
    image.putalpha(Image.fromarray(np.repeat(np.uint8([[0] * 32 + [255] * 32]), 48, axis=0)))
    image.save(tmp_path / "alpha.heic", quality=95)
    decoded = decode_image(tmp_path / "alpha.heic")
    assert decoded.pixels.alpha is not None
    assert np.asarray(decoded.pixels.rgb)[:, :24].min() > 240  # composed on white

    deep = (quarters(64, 64).astype(np.uint16) * 257).tobytes()
    pillow_heif.encode("RGB;16", (64, 64), deep, tmp_path / "deep.heic", quality=95)
    pixels = np.asarray(decode_image(tmp_path / "deep.heic").pixels.rgb).astype(int)
    assert np.abs(pixels - quarters(64, 64)).mean() < 16


def test_a_folder_of_mixed_formats_is_read(tmp_path: Path) -> None:
    for number, suffix in enumerate(("heic", "avif", "webp", "jpg")):
        Image.fromarray(quarters()).save(tmp_path / f"{number}.{suffix}")
    paths = find_images([tmp_path])
    assert [path.suffix for path in paths] == [".heic", ".avif", ".webp", ".jpg"]
    check_images(paths)
    assert load_images(tmp_path, size=56).shape == (4, 3, 42, 56)
