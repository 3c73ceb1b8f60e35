"""Several frames in a file, and texts, colour profiles and EXIF data that are damaged or large."""

import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from tests.images.pictures import png_chunk, save, scene
from vggt_int8 import load_images
from vggt_int8.images import open_image


@pytest.mark.parametrize(("name", "words"), [("a.gif", "GIF"), ("a.webp", "WEBP"), ("a.tif", "TIFF"), ("a.png", "PNG")])
def test_several_frames_in_a_file_are_told(tmp_path: Path, name: str, words: str) -> None:
    frames = [Image.new("RGB", (16, 12), (40 * i, 0, 0)) for i in range(5)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match=rf"the first alone is used: {name} \({words}, 5 frames") as caught:
        images = load_images(tmp_path / name, size=14)
    assert caught[0].filename == __file__
    assert images.max() < 0.05


def test_the_second_picture_of_an_mpo_is_named_for_what_it_is(tmp_path: Path) -> None:
    for name in ("a.mpo", "b.mpo"):
        scene(16, 12).save(tmp_path / name, save_all=True, append_images=[scene(8, 6)])
    with pytest.warns(UserWarning, match=r"a\.mpo, b\.mpo \(MPO, 2 frames each: .*preview.*stereo camera\)"):
        load_images(tmp_path, size=14)


def test_large_texts_and_profiles_are_no_damage(tmp_path: Path) -> None:
    image, text = scene(16, 12), PngImagePlugin.PngInfo()
    text.add_text("Comment", "x" * 3_000_000, zip=True)
    noise = np.random.default_rng(0).bytes(2_000_000)
    paths = [
        save(image, tmp_path / "text.png", pnginfo=text),
        save(image, tmp_path / "profile.png", icc_profile=b"\0" * 3_000_000),
        save(image, tmp_path / "profile.jpg", icc_profile=noise, quality=100),
        save(image, tmp_path / "profile.webp", icc_profile=noise, lossless=True),
        save(image, tmp_path / "profile.tif", icc_profile=noise),
    ]
    for path in paths:
        pixels = np.asarray(open_image(path)).astype(int)
        assert np.abs(pixels - np.asarray(image)).max() < 25
    load_images(paths, size=14)  # which looks at the headers first


def test_a_text_behind_the_pixels_is_no_damage_either(tmp_path: Path) -> None:
    whole = save(scene(16, 12), tmp_path / "a.png").read_bytes()
    text = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 3_000_000))
    (tmp_path / "a.png").write_bytes(whole[:-12] + text + whole[-12:])
    assert open_image(tmp_path / "a.png").size == (16, 12)
    (tmp_path / "cut.png").write_bytes(whole[:33] + text + whole[33:-60])
    with pytest.raises(ValueError, match=r"cut\.png cannot be decoded, it may be truncated"):
        open_image(tmp_path / "cut.png")


@pytest.mark.parametrize("exif", [b"Exif\0\0" + b"junk" * 20, b"Exif\0\0II*\0\x08\0\0\0\xff\xff"])
def test_exif_that_cannot_be_read_is_told_and_is_no_damage(tmp_path: Path, exif: bytes) -> None:
    path = save(scene(16, 12), tmp_path / "a.png", exif=exif)
    with pytest.warns(UserWarning, match=r"EXIF data cannot be read, .* as they are stored: a\.png") as caught:
        load_images(path, size=14)
    assert len(caught) == 1


@pytest.mark.parametrize("exif", [b"junk" * 20, b"II*\0\xff\xff\xff\xff", b"II*\0\x08\0\0\0\x05\0\x12\x01"])
def test_the_exif_of_a_jpeg_is_told_in_our_words_and_once(tmp_path: Path, exif: bytes) -> None:
    path = save(scene(16, 12), tmp_path / "a.jpg", exif=b"Exif\0\0" + exif)
    with pytest.warns(UserWarning, match=r"EXIF data cannot be read, .* as they are stored: a\.jpg") as caught:
        load_images(path, size=14)
    assert len(caught) == 1


def test_warnings_of_pillow_are_no_damage_where_warnings_are_errors(tmp_path: Path) -> None:
    path = save(scene(16, 12), tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_image(path).size == (16, 12)
