"""Large photographs and files that claim a size: in bounded memory, by threads that share it."""

import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.images.pictures import png_chunk, save, scene
from vggt_int8 import load_images
from vggt_int8.images import decode, fit_image, open_image
from vggt_int8.images.decode import decode_image
from vggt_int8.images.pillow_warnings import pillow_silenced


def test_a_photograph_of_108_megapixels_is_read(tmp_path: Path) -> None:
    path = save(Image.new("L", (12000, 9000), 200), tmp_path / "phone.jpg")
    images, transforms = load_images(path, size=112, patch_size=8, return_transforms=True)
    assert images.shape == (1, 3, 80, 112)
    assert transforms[0].original_size == (9000, 12000)
    assert transforms[0].scale == (112 / 12000, 80 / 9000)
    assert (images - 200 / 255).abs().max() < 0.01
    decoded = decode_image(path, size=300)
    assert decoded.pixels.rgb.size == (1500, 1125)  # by libjpeg itself: the whole is never in memory


@pytest.mark.parametrize(("orientation", "decoded"), [(1, (400, 300)), (6, (300, 400))])
def test_a_fast_jpeg_is_decoded_smaller_and_close(tmp_path: Path, orientation: int, decoded: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(scene(), tmp_path / "a.jpg", exif=exif)  # 800 x 600
    options = {"size": 112, "patch_size": 14, "return_transforms": True}
    expected, plain = load_images(path, **options)
    fast, transforms = load_images(path, **options, fast_jpeg=True)
    assert decode_image(path, size=112, fast_jpeg=True).pixels.rgb.size == decoded
    assert decode_image(path, size=112).pixels.rgb.size == (2 * decoded[0], 2 * decoded[1])
    assert transforms == plain
    assert not torch.equal(fast, expected)
    assert (fast - expected).abs().mean() < 1 / 255
    # Where less than 1.4 times the pixels would remain, and in other formats, nothing changes.
    few = {**options, "size": 518}
    assert torch.equal(load_images(path, **few, fast_jpeg=True)[0], load_images(path, **few)[0])
    other = save(scene(), tmp_path / "a.png")
    assert torch.equal(load_images(other, **options, fast_jpeg=True)[0], load_images(other, **options)[0])


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp", "rgba.png", "gray16.png", "palette.png"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_large_images_of_every_format_are_reduced_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, orientation: int
) -> None:
    image = scene()
    if name == "rgba.png":
        image.putalpha(Image.new("L", image.size, 255))
        image.paste((0, 0, 0, 0), (0, 0, 400, 600))
    if name == "gray16.png":
        image = Image.fromarray(np.asarray(image)[..., 1].astype(np.uint16) * 257)
    if name == "palette.png":
        image = image.quantize(64)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(image, tmp_path / name, exif=exif)
    options = {"size": 56, "patch_size": 14, "return_transforms": True}
    expected, plain = load_images(path, **options)
    monkeypatch.setattr(decode, "_REDUCED_ABOVE", 1000)
    monkeypatch.setattr(decode, "_STRIP_PIXELS", 40_000)
    reduced, transforms = load_images(path, **options)
    assert decode_image(path, size=56).pixels.rgb.size in [(200, 150), (150, 200)]
    assert transforms == plain
    assert (reduced - expected).abs().mean() < 0.01
    different = transforms[0].content_mask() != plain[0].content_mask()
    assert different.float().mean() < 0.02
    if name == "rgba.png":
        assert 0.4 < transforms[0].content_mask().float().mean() < 0.6


def test_fewer_bits_are_found_in_large_images_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = np.linspace(0, 4095, 200 * 100).reshape(100, 200).astype(np.uint16)
    path = save(Image.fromarray(ramp), tmp_path / "a.png")
    monkeypatch.setattr(decode, "_REDUCED_ABOVE", 1000)
    monkeypatch.setattr(decode, "_STRIP_PIXELS", 1000)
    with pytest.warns(UserWarning, match="values end at 4095"):
        load_images(path, size=14)


def declared(path: Path, width: int, height: int) -> Path:
    """A PNG of a few bytes that claims a size."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = png_chunk(b"IDAT", zlib.compress(b"\0" * 100)) + png_chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + data)
    return path


def test_strips_change_no_pixel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = scene(120, 90).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    path = save(image, tmp_path / "a.png")
    whole = decode_image(path).pixels
    monkeypatch.setattr(decode, "_STRIP_PIXELS", 1000)
    strips = decode_image(path).pixels
    assert whole.rgb.tobytes() == strips.rgb.tobytes()
    assert whole.alpha is not None
    assert strips.alpha is not None
    assert whole.alpha.tobytes() == strips.alpha.tobytes()


def test_the_pixels_that_a_file_declares_are_bounded(tmp_path: Path) -> None:
    path = declared(tmp_path / "claims.png", 20000, 20000)
    with pytest.raises(ValueError, match=r"claims\.png is too large: 400000000 pixels.* 250000000 .*max_pixels="):
        load_images(path)
    small = save(scene(64, 64), tmp_path / "small.png")
    with pytest.raises(ValueError, match="too large: 4096 pixels"):
        load_images(small, max_pixels=4095)
    assert load_images(small, max_pixels=4096, size=14).shape == (1, 3, 14, 14)
    for wrong in (True, 1e6, "9"):
        with pytest.raises(TypeError, match=f"max_pixels is {wrong!r}; it must be an integer"):
            open_image(path, max_pixels=wrong)
    with pytest.raises(ValueError, match="max_pixels is 0"):
        load_images(small, max_pixels=0)


@pytest.mark.parametrize("size", [(1, 200_000_000), (200_000_000, 1)])
def test_the_sides_that_a_file_declares_are_bounded(tmp_path: Path, size: tuple[int, int]) -> None:
    path = declared(tmp_path / "claims.png", *size)
    with pytest.raises(ValueError, match=rf"claims\.png is {size[0]} x {size[1]} pixels .* longer than 1000000"):
        load_images(path)


def test_more_pixels_are_read_on_request_and_pillows_own_limit_stays(tmp_path: Path) -> None:
    before = Image.MAX_IMAGE_PIXELS
    path = declared(tmp_path / "claims.png", 20000, 20000)
    assert decode.read_header(path, max_pixels=500_000_000).size == (20000, 20000)
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("mode", ["crop", "pad"])
@pytest.mark.parametrize("size", [(10, 20000), (1, 6000), (6000, 1)])
def test_tall_and_narrow_images_take_no_more_than_what_is_kept(
    mode: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = scene(*size)
    largest = 0
    resize = Image.Image.resize

    def watched(self: Image.Image, size: tuple[int, int], *args: object, **kwargs: object) -> Image.Image:
        nonlocal largest
        largest = max(largest, size[0] * size[1])
        return resize(self, size, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", watched)
    pixels, transform = fit_image(image, mode, size=112)
    assert largest <= 112 * 112
    assert pixels.shape[1] <= 112
    assert torch.isfinite(pixels).all()
    assert transform.content_mask().any()


def test_a_tall_image_is_cropped_where_it_would_have_been(monkeypatch: pytest.MonkeyPatch) -> None:
    image = scene(20, 400)
    box, transform = fit_image(image, "crop", size=56)
    monkeypatch.setattr("vggt_int8.images.fit._TALLEST_RESIZED_WHOLE", 1000)
    whole, same = fit_image(image, "crop", size=56)
    assert transform == same
    assert (box - whole).abs().max() <= 1.01 / 255


def test_threads_share_the_room_for_pixels() -> None:
    room, held, most = decode._Room(10), 0, 0
    lock, pair = threading.Lock(), threading.Barrier(2)

    def hold(pixels: int) -> None:
        nonlocal held, most
        with room.of(pixels):
            with lock:
                held += 1
                most = max(most, held)
            if pixels == 5:
                pair.wait(timeout=10)  # for the other one, which has room beside it
            with lock:
                held -= 1

    threads = [threading.Thread(target=hold, args=(pixels,)) for pixels in (5, 5, 5, 11, 5, 11)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 2  # two of 5; one of 11 has all for itself


def test_reading_in_threads_leaves_filters_and_limits_as_they_were(tmp_path: Path) -> None:
    """Damaged EXIF makes Pillow warn in every thread: nobody hears it, and afterwards all is as before."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for number in range(12):
        Image.new("RGB", (64, 48), (20 * number,) * 3).save(tmp_path / f"{number}.jpg", exif=exif.tobytes()[:-4])
    before, limit = list(warnings.filters), Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        images = load_images(tmp_path, size=56)
    assert [round(image[:, 28, 28].mean().item() * 255 / 20) for image in images] == list(range(12))
    assert {warning.filename.count("PIL") for warning in heard} <= {0}
    assert (list(warnings.filters), Image.MAX_IMAGE_PIXELS) == (before, limit)


def test_readers_whose_threads_overlap_leave_filters_as_they_were() -> None:
    before = list(warnings.filters), warnings.showwarning
    first, second = pillow_silenced(), pillow_silenced()
    with first:
        second.__enter__()
    assert warnings.showwarning is not before[1]  # for the second, which is still there
    second.__exit__(None, None, None)
    assert (list(warnings.filters), warnings.showwarning) == before
