"""Large photographs, several frames, metadata, and errors that say what a file is; images made for a model."""

import io
import os
import struct
import threading
import warnings
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from vggt_int8 import VGGTConfig, load_images
from vggt_int8.images import decode, fit_image, open_image
from vggt_int8.images.decode import decode_image


def scene(width: int = 800, height: int = 600) -> Image.Image:
    rows, columns = np.linspace(0, 255, height)[:, None], np.linspace(0, 255, width)
    bands = np.broadcast_arrays(rows, columns, (rows + columns) / 2)
    return Image.fromarray(np.stack(bands, -1).astype(np.uint8))


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


# ---- large images ----


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


# ---- frames and metadata ----


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


# ---- files that are no images, by what they are ----


@pytest.mark.usefixtures("no_image_plugins")
def test_only_damaged_files_are_called_damaged(tmp_path: Path) -> None:
    jpeg = save(scene(16, 12), tmp_path / "whole.jpg").read_bytes()
    at = jpeg.index(b"\xff\xc0")
    contents = {
        "a.heic": (b"\0\0\0\x18ftypheic", "pip install pillow-heif"),
        "renamed.jpg": (b"\0\0\0\x18ftypmif1", "pip install pillow-heif"),
        "a.jxl": (b"\xff\x0a123", "pillow-jxl-plugin"),
        "a.exr": (b"\x76\x2f\x31\x01", "tone-map"),
        "a.CR3": (b"\0\0\0\x18ftypcrx ", "raw data"),
        "a.mov": (b"\0\0\0\x14ftypqt  ", "a video"),
        "a.pdf": (b"%PDF-1.4", "a document"),
        "twelve.jpg": (jpeg[: at + 4] + b"\x0c" + jpeg[at + 5 :], "is a JPEG of 12 bits"),
        "drawing.png": (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "is a drawing"),
        "page.jpg": (b"\n<!DOCTYPE html><html>", "is a web page"),
        "pointer.jpg": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    }
    for name, (content, message) in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message) as raised:
            load_images([tmp_path / name])
        assert str(tmp_path / name) in str(raised.value)
        assert "damaged" not in str(raised.value).replace(str(tmp_path), "")


def test_the_preview_in_a_raw_file_is_not_taken_for_the_photograph(tmp_path: Path) -> None:
    save(scene(16, 12), tmp_path / "a.tif", tiffinfo={50706: b"\1\4\0\0"})
    (tmp_path / "a.tif").rename(tmp_path / "renamed.tif")
    save(scene(16, 12), tmp_path / "a.tif")
    (tmp_path / "a.tif").rename(tmp_path / "a.NEF")
    for name in ("renamed.tif", "a.NEF"):
        with pytest.raises(ValueError, match=rf"{name} cannot be read: a camera's raw data"):
            load_images(tmp_path / name)


def test_pipes_devices_and_folders_are_named_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ValueError, match=r"pipe\.jpg is a pipe"):
        load_images(tmp_path / "pipe.jpg")
    with pytest.raises(ValueError, match="/dev/null is a device"):
        load_images("/dev/null")
    with pytest.raises(ValueError, match="is a folder"):
        open_image(tmp_path)


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), FileNotFoundError(2, "No such file")])
def test_errors_of_the_file_system_stay_what_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    path = save(scene(16, 12), tmp_path / "a.png")

    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(type(error), match=r"a\.png"):
        load_images(path)


def test_a_bad_image_is_found_before_any_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [save(scene(16, 12), tmp_path / "a.png"), tmp_path / "b.png"]
    paths[1].write_bytes(b"no image")
    monkeypatch.setattr(Image.Image, "resize", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=r"b\.png is not an image"):
        load_images(paths)


# ---- for a model ----


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return save(scene(), tmp_path / "a.png")


def test_size_and_patch_come_from_the_model(photo: Path, make_tiny) -> None:
    model = make_tiny()
    config = model.config
    expected = load_images(photo, size=config.img_size, patch_size=config.patch_size)
    for source in (model, config, SimpleNamespace(config=config), VGGTConfig(img_size=112, patch_size=8)):
        images = load_images(photo, model=source)
        size = 112 if isinstance(source, VGGTConfig) and source is not config else config.img_size
        assert images.shape[-1] == size
        if size == config.img_size:
            assert torch.equal(images, expected)


def test_what_is_no_model_and_what_contradicts_one_is_refused(photo: Path) -> None:
    for wrong in ("facebook/VGGT-1B", torch.nn.Linear(2, 2), 518, io.BytesIO()):
        with pytest.raises(TypeError, match=f"model is a {type(wrong).__name__} without img_size and patch_size"):
            load_images(photo, model=wrong)
    for options in ({"size": 518}, {"patch_size": 14}):
        with pytest.raises(ValueError, match="beside model="):
            load_images(photo, model=VGGTConfig(), **options)


@pytest.mark.parametrize("wrong", [True, 14.0, "14"])
@pytest.mark.parametrize("name", ["size", "patch_size"])
def test_sizes_are_integers(photo: Path, name: str, wrong: object) -> None:
    with pytest.raises(TypeError, match=f"^{name} is {wrong!r}; it must be an integer$"):
        load_images(photo, **{name: wrong})


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
