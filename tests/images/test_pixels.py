"""Every container, depth and range that the table in `images.pixels` names, and alpha on its way to the mask."""

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vggt_int8.images import ImageTransform, check_images, load_images, open_image
from vggt_int8.images.decode import decode_image
from vggt_int8.images.fit import pad_white

RAMP = np.array([[0, 128, 129, 257, 32896, 65535]], dtype=np.uint16)
CODES = [0, 0, 1, 1, 128, 255]  # RAMP / 257, to the nearest


def tiff(
    path: Path, samples: np.ndarray, *, order: str = "<", photometric: int = 1, kind: int = 1, extra: int | None = None
) -> Path:
    """An uncompressed TIFF [H, W] or [H, W, C] with exactly these tags: Pillow writes few of the variants."""
    height, width = samples.shape[:2]
    depth = samples.shape[2] if samples.ndim == 3 else 1
    data = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    bits = [samples.dtype.itemsize * 8] * depth
    tags: list[tuple[int, list[int]]] = [
        (256, [width]), (257, [height]), (258, bits), (259, [1]), (262, [photometric]), (273, [0]), (277, [depth]),
        (278, [height]), (279, [len(data)]), (339, [kind] * depth), *([(338, [extra])] if extra is not None else []),
    ]  # fmt: skip
    tags.sort()
    after = 8 + 2 + 12 * len(tags) + 4
    longer = b"".join(struct.pack(f"{order}{depth}H", *values) for _, values in tags if len(values) > 2)
    entries, at = b"", after
    for tag, values in tags:
        values = [after + len(longer)] if tag == 273 else values
        wide = tag in (273, 279)
        entries += struct.pack(f"{order}HHI", tag, 4 if wide else 3, len(values))
        if len(values) > 2:
            entries += struct.pack(f"{order}I", at)
            at += 2 * len(values)
        else:
            entries += struct.pack(f"{order}{len(values)}{'I' if wide else 'H'}", *values).ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    path.write_bytes(head + entries + struct.pack(f"{order}I", 0) + longer + data)
    return path


def pnm(path: Path, kind: str, maxval: int, samples: list[int]) -> Path:
    width = len(samples) // (3 if kind == "P6" else 1)
    path.write_bytes(f"{kind} {width} 1 {maxval}\n".encode() + np.array(samples, ">u2").tobytes())
    return path


def saved(path: Path, samples: np.ndarray) -> Path:
    Image.fromarray(samples).save(path)
    return path


SIXTEEN_BITS = {
    "gray.png": lambda path: saved(path, RAMP),
    "gray.jp2": lambda path: saved(path, RAMP),
    "gray.tif": lambda path: tiff(path, RAMP),
    "big_endian.tif": lambda path: tiff(path, RAMP, order=">"),
    "from_white.tif": lambda path: tiff(path, 65535 - RAMP, photometric=0),
    "gray.pgm": lambda path: pnm(path, "P5", 65535, RAMP[0].tolist()),
}


@pytest.mark.parametrize("name", SIXTEEN_BITS)
def test_sixteen_bit_gray_keeps_its_range_in_every_container(tmp_path: Path, name: str) -> None:
    pixels = np.asarray(open_image(SIXTEEN_BITS[name](tmp_path / name)))
    assert pixels.shape == (1, 6, 3)
    assert pixels[0].T.tolist() == [CODES] * 3


@pytest.mark.parametrize(("order", "photometric", "extra"), [("<", 2, None), (">", 2, None), ("<", 2, 2)])
def test_sixteen_bit_colours_keep_their_upper_bits(
    tmp_path: Path, order: str, photometric: int, extra: int | None
) -> None:
    channels = [RAMP, RAMP[:, ::-1], RAMP, np.full_like(RAMP, 65535)][: 3 if extra is None else 4]
    path = tiff(tmp_path / "a.tif", np.stack(channels, -1), order=order, photometric=photometric, extra=extra)
    pixels = np.asarray(open_image(path))
    assert pixels[0, :, 0].tolist() == (RAMP[0] >> 8).tolist()
    assert pixels[0, :, 1].tolist() == (RAMP[0, ::-1] >> 8).tolist()


@pytest.mark.parametrize("maxval", [300, 1023, 4095, 65535])
def test_a_pnm_is_white_at_its_maxval(tmp_path: Path, maxval: int) -> None:
    gray = np.asarray(open_image(pnm(tmp_path / "a.pgm", "P5", maxval, [0, maxval // 3, maxval])))
    assert gray[0, :, 0].tolist() == pytest.approx([0, 85, 255], abs=1)
    color = np.asarray(open_image(pnm(tmp_path / "a.ppm", "P6", maxval, [0, maxval // 3, maxval])))
    assert color[0, 0].tolist() == pytest.approx([0, 85, 255], abs=1)


@pytest.mark.parametrize(("largest", "bits"), [(1000, 10), (4095, 12), (16383, 14)])
def test_fewer_bits_in_sixteen_are_told_with_the_range_found(tmp_path: Path, largest: int, bits: int) -> None:
    ramp = np.linspace(0, largest, 16 * 12).reshape(12, 16).astype(np.uint16)
    for path in (
        saved(tmp_path / "a.png", ramp),
        tiff(tmp_path / "a.tif", ramp, order=">"),
        pnm(tmp_path / "a.pgm", "P5", 65535, [*ramp[0].tolist(), largest]),
    ):
        with pytest.warns(UserWarning, match=rf"{bits} bits: {path.name}\): their values end at {largest}") as caught:
            images = load_images(path, size=14)
        assert caught[0].filename == __file__
        assert images.max() <= largest / 65535 + 0.01  # as stored: nothing is guessed
    path = tiff(tmp_path / "rgb.tif", np.stack([ramp] * 3, -1), photometric=2)
    if bits > 8:
        with pytest.warns(UserWarning, match=rf"{bits} bits: rgb\.tif"):
            load_images(path, size=14)


@pytest.mark.parametrize("depth", [1, 3])
def test_fewer_bits_are_found_in_sgi_files_too(tmp_path: Path, depth: int) -> None:
    samples = np.full((depth, 12, 16), 4095, ">u2").tobytes()
    header = struct.pack(">hbbHHHHii", 474, 0, 2, 3 if depth > 1 else 2, 16, 12, depth, 0, 4095).ljust(512, b"\0")
    (tmp_path / "a.sgi").write_bytes(header + samples)
    with pytest.warns(UserWarning, match=r"12 bits: a\.sgi"):
        load_images(tmp_path / "a.sgi", size=14)


def test_one_line_tells_of_all_files_with_fewer_bits(tmp_path: Path) -> None:
    for i in range(9):
        saved(tmp_path / f"{i}.png", np.full((4, 4), 4000 + i, dtype=np.uint16))
    with pytest.warns(UserWarning, match=r"12 bits: 0\.png, .*4\.png and 4 more\): their values end at 4008") as caught:
        load_images(tmp_path, size=14)
    assert len(caught) == 1


def test_whole_ranges_and_black_pictures_say_nothing(tmp_path: Path) -> None:
    saved(tmp_path / "a.png", RAMP)
    saved(tmp_path / "b.png", np.zeros_like(RAMP))
    pnm(tmp_path / "c.pgm", "P5", 4095, [0, 1, 2, 3, 4, 4095])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_images(tmp_path, size=14)


REFUSED = {
    "signed16.tif": (RAMP.astype(np.int16), 2, r"mode I\).* from -32640 to 257"),
    "signed32.tif": (RAMP.astype(np.int32), 2, r"mode I\).* from 0 to 65535"),
    "signed8.tif": (RAMP.astype(np.int8), 2, "samples are signed"),
    "unit.tif": ((RAMP / 65535).astype(np.float32), 3, r"mode F\).* from 0 to 1; .*8 or 16 bits"),
    "to_255.tif": ((RAMP / 257).astype(np.float32), 3, r"mode F\).* from 0 to 255; "),
    "double.tif": (RAMP.astype(np.float64), 3, "is a TIFF .*BitsPerSample 64, .*SampleFormat 3"),
    "half.tif": ((RAMP / 65535).astype(np.float16), 3, "is a TIFF .*BitsPerSample 16, .*SampleFormat 3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_samples_without_a_known_white_are_refused_with_their_range(tmp_path: Path, name: str) -> None:
    samples, kind, message = REFUSED[name]
    with pytest.raises(ValueError, match=rf"{name} .*{message}") as raised:
        open_image(tiff(tmp_path / name, samples, kind=kind))
    assert "damaged" not in str(raised.value)
    with pytest.raises(ValueError, match=rf"{name} .*{message}"):  # before a model is loaded
        check_images([tmp_path / name])


def test_sixteen_bits_that_pillow_does_not_read_are_named(tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", RAMP, photometric=0, order=">")
    with pytest.raises(ValueError, match=r"a\.tif is a TIFF that Pillow does not read \(.*PhotometricInterpretation 0"):
        open_image(path)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"a\.tif is a damaged TIFF"):
        open_image(path)


def test_eight_bits_that_count_from_white_are_inverted(tmp_path: Path) -> None:
    codes = np.array([[0, 100, 255]], dtype=np.uint8)
    pixels = np.asarray(open_image(tiff(tmp_path / "a.tif", codes, photometric=0)))
    assert pixels[0, :, 0].tolist() == [255, 155, 0]


# Container -> the modes that Pillow saves in it.
MODES = {
    "png": ("1", "L", "P", "RGB", "LA", "RGBA"),
    "tif": ("1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "LA", "RGBA"),
    "jpg": ("1", "L", "RGB", "CMYK", "YCbCr"),
    "webp": ("1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "HSV", "LA", "RGBA"),
    "jp2": ("L", "RGB", "CMYK", "YCbCr", "LA", "RGBA"),
    "avif": ("1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "HSV", "LA", "RGBA"),
    "bmp": ("1", "L", "P", "RGB", "RGBA"),
    "tga": ("1", "L", "P", "RGB", "LA", "RGBA"),
}


@pytest.mark.parametrize(("suffix", "mode"), [(suffix, mode) for suffix, modes in MODES.items() for mode in modes])
def test_white_and_black_stay_so_in_every_mode_that_a_container_has(tmp_path: Path, mode: str, suffix: str) -> None:
    stripes = Image.new("RGB", (32, 32))
    stripes.paste((255, 255, 255), (0, 0, 16, 32))
    if mode == "LAB":
        image = Image.new("LAB", (32, 32), (0, 128, 128))
        image.paste((255, 128, 128), (0, 0, 16, 32))
    else:
        image = stripes.convert(mode)
    image.save(tmp_path / f"a.{suffix}")
    pixels = np.asarray(open_image(tmp_path / f"a.{suffix}")).astype(int)
    assert pixels[:, :12].min() >= 245
    assert pixels[:, 20:].max() <= 10


def png(path: Path, bits: int, color: int, row: bytes, width: int, key: bytes = b"", palette: bytes = b"") -> Path:
    """One row, of any bit depth and colour type: Pillow writes few of them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, 1, bits, color, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), *([chunk(b"PLTE", palette)] if palette else [])]
    chunks += [*([chunk(b"tRNS", key)] if key else []), chunk(b"IDAT", zlib.compress(b"\0" + row)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return path


@pytest.mark.parametrize(("color", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_sixteen_bit_colours_of_a_png_keep_their_upper_bits_and_narrow_ones_are_told(
    tmp_path: Path, color: int, channels: int
) -> None:
    samples = np.full((4, channels), 4095, dtype=">u2")
    samples[0, 0] = 300
    if color > 2:
        samples[:, -1] = 65535  # alpha
    path = png(tmp_path / "a.png", 16, color, samples.tobytes(), 4)
    assert np.asarray(open_image(path))[0, :, 0].tolist() == [1, 15, 15, 15]
    with pytest.warns(UserWarning, match=r"12 bits: a\.png"):
        load_images(path, size=14)


# ---- alpha ----


@pytest.mark.parametrize(
    ("bits", "row", "codes"),
    [(1, 0b0110_0000, [0, 255, 255, 0]), (2, 0b0001_1011, [0, 85, 170, 255]), (4, None, [0, 85, 170, 255])],
)
def test_few_bits_of_gray_spread_over_the_range_and_their_colour_key_too(
    tmp_path: Path, bits: int, row: int | None, codes: list[int]
) -> None:
    data = bytes([0x05, 0xAF]) if row is None else bytes([row])
    assert np.asarray(open_image(png(tmp_path / "a.png", bits, 0, data, 4)))[0, :, 0].tolist() == codes
    for code in set(codes):
        key = struct.pack(">H", code * (2**bits - 1) // 255)
        alpha = decode_image(png(tmp_path / "a.png", bits, 0, data, 4, key=key)).pixels.alpha
        assert alpha is not None
        assert np.asarray(alpha)[0].tolist() == [0 if one == code else 255 for one in codes]


def test_palette_entries_of_few_bits_may_be_transparent(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png", 2, 3, bytes([0b0001_1011]), 4, key=bytes([255, 0, 128]), palette=bytes(range(12)))
    pixels = decode_image(path).pixels
    assert pixels.alpha is not None
    assert np.asarray(pixels.alpha)[0].tolist() == [255, 0, 128, 255]
    assert np.asarray(pixels.rgb)[0, [0, 1, 3]].tolist() == [[0, 1, 2], [255, 255, 255], [9, 10, 11]]


def test_a_colour_key_of_sixteen_bits_is_found(tmp_path: Path) -> None:
    samples = [0, 10000, 40950, 20000, 40950, 17]
    row, key = struct.pack(">6H", *samples), struct.pack(">3H", *samples[:3])
    alpha = decode_image(png(tmp_path / "a.png", 16, 2, row, 2, key=key)).pixels.alpha
    assert alpha is not None
    assert np.asarray(alpha)[0].tolist() == [0, 255]


def cut_out(path: Path, mode: str = "RGBA") -> Path:
    """96 x 72 pixels, opaque in rows 18 to 53 and columns 24 to 71: exactly half of each side."""
    image = Image.new("RGBA", (96, 72), (10, 200, 30, 0))
    image.paste((10, 200, 30, 255), (24, 18, 72, 54))
    if mode == "P":
        flat = Image.new("P", image.size, 1)
        flat.putpalette([10, 200, 30, 0, 0, 0])
        flat.paste(0, (24, 18, 72, 54))
        flat.save(path, transparency=1)
    elif mode == "L":  # a colour key
        flat = Image.new("L", image.size, 7)
        flat.paste(90, (24, 18, 72, 54))
        flat.save(path, transparency=7)
    elif mode == "I;16":
        wide = np.full((72, 96), 300, dtype=np.uint16)
        wide[18:54, 24:72] = 60000
        Image.fromarray(wide).save(path, transparency=300)
    else:
        image.convert(mode).save(path)
    return path


def transform_of(path: Path, mode: str = "crop", size: int = 48) -> tuple[torch.Tensor, ImageTransform]:
    images, transforms = load_images(path, mode, size=size, patch_size=6, return_transforms=True)
    return images[0], transforms[0]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "I;16"])
def test_transparent_pixels_are_remembered_in_every_mode_that_has_them(tmp_path: Path, mode: str) -> None:
    image, transform = transform_of(cut_out(tmp_path / "a.png", mode))
    expected = torch.zeros(36, 48, dtype=torch.bool)
    expected[9:27, 12:36] = True
    assert torch.equal(transform.content_mask(), expected)
    assert torch.equal(transform.transparent_mask(), ~expected)
    assert (image[:, :8] == 1).all()


@pytest.mark.parametrize("mode", ["crop", "pad"])
def test_the_mask_follows_crop_padding_and_orientation(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (40, 160), (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 20, 160))  # the left half; stored turned
    exif = Image.Exif()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.png", exif=exif)
    pixels, transform = transform_of(tmp_path / "a.png", mode)
    assert transform.original_size == (160, 40)
    mask, height, width = transform.content_mask(), *transform.model_size
    assert torch.equal(mask, pixels[0] < 0.5)
    assert mask.any()
    assert not mask[:, : width // 2].any()
    assert int(transform.transparent_mask().sum() + mask.sum()) == (height * width if mode == "crop" else 48 * 12)
    padded = transform.padded_to((48, 60))
    assert padded.content_mask().sum() == mask.sum()
    assert padded.transparent_mask().sum() == transform.transparent_mask().sum()


def test_an_odd_pixel_of_padding_goes_right_and_down() -> None:
    image = pad_white(torch.zeros(3, 3, 4), (6, 7))
    expected = torch.zeros(6, 7, dtype=torch.bool)
    expected[1:4, 1:5] = True
    assert torch.equal(image == 0, expected.expand(3, 6, 7))
    padded = ImageTransform((3, 4), (3, 4), (1.0, 1.0), (0, 0)).padded_to((6, 7))
    assert torch.equal(padded.content_mask(), expected)


def test_an_image_without_padding_is_content_to_its_last_pixel() -> None:
    """Also where a width times its scale falls short of a whole number: 45 * (392 / 45) < 392 in floating point."""
    assert 45 * (392 / 45) < 392
    for width in range(1, 100):
        for new in range(14, 519, 14):
            for turn in (1, -1):
                original, model, scale = ((14, width), (14, new), (new / width, 1.0))
                transform = ImageTransform(original[::turn], model[::turn], scale[::turn], (0, 0))
                assert transform.content_mask().all(), (width, new)


def test_a_pixel_counts_from_one_half_on(tmp_path: Path) -> None:
    image = Image.new("RGBA", (48, 48), (0, 0, 0, 127))
    image.paste((0, 0, 0, 128), (24, 0, 48, 48))
    image.save(tmp_path / "a.png")
    mask = transform_of(tmp_path / "a.png")[1].content_mask()
    assert not mask[:, :24].any()
    assert mask[:, 24:].all()


def test_opaque_alpha_is_no_mask_and_an_invisible_image_is_told(tmp_path: Path) -> None:
    Image.new("RGBA", (48, 48), (9, 9, 9, 255)).save(tmp_path / "a.png")
    assert transform_of(tmp_path / "a.png")[1].opaque is None
    Image.new("RGBA", (48, 48), (9, 9, 9, 0)).save(tmp_path / "b.png")
    with pytest.warns(UserWarning, match=r"images are transparent everywhere: b\.png"):
        transform_of(tmp_path / "b.png")
