"""Image loading: the reference preprocessing to the last bit, odd files, clear errors, and the way back."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from vggt_int8.images import IMAGE_SUFFIXES, ImageTransform, find_images, fit_image, load_images, open_image

PARITY = Path(__file__).parent / "data/parity"
GOLDEN = load_file(PARITY / "golden_preprocess.safetensors")
CASES = json.loads((PARITY / "golden_preprocess.json").read_text())


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def save(image: Image.Image, path: Path, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


@pytest.mark.filterwarnings("ignore:images differ in size")
@pytest.mark.parametrize("case", CASES)
def test_pixels_equal_the_reference_preprocessing(case: str) -> None:
    facts = CASES[case]
    mode = case.split(".")[1]
    images = load_images([PARITY / "images" / f"{name}.png" for name in facts["images"]], mode)
    stride = facts["stride"]
    assert list(images.shape) == facts["shape"]
    assert images.dtype == torch.float32
    codes = images[:, :, ::stride, ::stride] * 255
    assert torch.equal(codes.round().to(torch.uint8), GOLDEN[case])
    assert (codes - codes.round()).abs().max() < 1e-4


def test_one_path_a_folder_a_glob_and_a_list_give_the_same_images(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        save(noise(60, 40, seed=ord(name[0])), tmp_path / name)
    expected = load_images([tmp_path / "a.png", str(tmp_path / "b.png")], size=56)
    assert expected.shape == (2, 3, 42, 56)
    for source in (tmp_path, str(tmp_path), str(tmp_path / "*.png"), tmp_path / "[ab].png", [tmp_path]):
        assert torch.equal(load_images(source, size=56), expected)
    assert torch.equal(load_images(tmp_path / "a.png", size=56), expected[:1])


def test_folders_are_read_in_natural_order_and_lists_in_their_own(tmp_path: Path) -> None:
    names = ["IMG_1.jpg", "img_2.PNG", "img_10.jpg", "img_010b.jpg", "other.jpeg"]
    for name in reversed(names):
        save(noise(8, 8), tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden.jpg").write_bytes(b"")
    save(noise(8, 8), tmp_path / "sub" / "0.jpg")
    assert [path.name for path in find_images(tmp_path)] == names
    assert [path.name for path in find_images(str(tmp_path / "*"))] == names
    chosen = [tmp_path / names[2], tmp_path / names[0]]
    assert find_images(chosen) == chosen
    assert [path.name for path in find_images([tmp_path / "other.jpeg", tmp_path / "sub"])] == [
        "other.jpeg",
        "0.jpg",
    ]
    assert len(find_images(tmp_path / "**" / "*.jpg")) == 4


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tmp_path: Path) -> None:
    path = save(noise(8, 8), tmp_path / "scene[1].png")
    assert find_images(path) == [path]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = noise(40, 20)
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright if undo is None else upright.transpose(undo)
    path = save(stored, tmp_path / "turned.png", exif=exif)
    assert np.array_equal(np.asarray(open_image(path)), np.asarray(upright))
    _, transforms = load_images(path, size=56, return_transforms=True)
    assert transforms[0].original_size == (20, 40)


def test_alpha_is_composed_on_white_in_every_mode_that_has_it(tmp_path: Path) -> None:
    gray = Image.linear_gradient("L").resize((16, 16))
    alpha = Image.new("L", gray.size, 0)
    alpha.paste(255, (0, 0, 8, 16))
    with_alpha = {
        "la": Image.merge("LA", (gray, alpha)),
        "rgba": Image.merge("RGBA", (gray, gray, gray, alpha)),
    }
    palette = Image.new("P", (16, 16), 1)
    palette.putpalette([10, 20, 30, 90, 90, 90])
    palette.paste(0, (8, 0, 16, 16))
    for name, image in with_alpha.items():
        pixels = np.asarray(open_image(save(image, tmp_path / f"{name}.png")))
        assert (pixels[:, 8:] == 255).all()
        assert np.array_equal(pixels[:, :8, 0], np.asarray(gray)[:, :8])
    pixels = np.asarray(open_image(save(palette, tmp_path / "p.png", transparency=0)))
    assert (pixels[:, 8:] == 255).all()
    assert (pixels[:, :8] == 90).all()


def test_sixteen_bit_gray_keeps_its_range(tmp_path: Path) -> None:
    wide = np.array([[0, 128, 129, 257, 32896, 65535]], dtype=np.uint16)
    for suffix in ("png", "tif"):
        pixels = np.asarray(open_image(save(Image.fromarray(wide), tmp_path / f"wide.{suffix}")))
        assert pixels[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]
        assert pixels.shape == (1, 6, 3)


@pytest.mark.parametrize(("mode", "suffix"), [("1", "png"), ("L", "jpg"), ("P", "gif"), ("CMYK", "jpg")])
def test_other_modes_become_rgb(tmp_path: Path, mode: str, suffix: str) -> None:
    flat = Image.new("RGB", (32, 32), (255, 255, 255))
    pixels = np.asarray(open_image(save(flat.convert(mode), tmp_path / f"flat.{suffix}")))
    assert pixels.shape == (32, 32, 3)
    assert pixels.min() >= 250


def test_pixels_without_a_known_range_are_refused(tmp_path: Path) -> None:
    path = save(Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32)), tmp_path / "float.tif")
    with pytest.raises(ValueError, match=r"float\.tif.*mode F.*8 or 16 bits"):
        open_image(path)


def test_mixed_sizes_are_padded_with_a_warning_that_names_them(tmp_path: Path) -> None:
    save(noise(80, 60), tmp_path / "landscape.png")
    save(noise(60, 80), tmp_path / "portrait.png")
    with pytest.warns(UserWarning, match=r"42x56: landscape\.png; 56x56: portrait\.png.*white to 56x56") as caught:
        images = load_images(tmp_path, size=56)
    assert caught[0].filename == __file__
    assert images.shape == (2, 3, 56, 56)
    assert (images[0, :, :7] == 1).all()
    assert (images[0, :, 49:] == 1).all()


def test_equal_sizes_give_no_warning(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        save(noise(80, 60), tmp_path / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_images(tmp_path, size=56)


def test_progress_counts_every_image(tmp_path: Path) -> None:
    for i in range(3):
        save(noise(8, 8), tmp_path / f"{i}.png")
    calls: list[tuple[int, int]] = []
    load_images(tmp_path, size=14, on_image=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_a_very_flat_image_keeps_one_row_of_patches() -> None:
    pixels, transform = fit_image(noise(1000, 5), "crop", size=56)
    assert pixels.shape == (3, 14, 56)
    assert transform.scale == (56 / 1000, 14 / 5)
    pixels, _ = fit_image(noise(5, 1000), "pad", size=56)
    assert pixels.shape == (3, 56, 56)


# ---- errors ----


def jpeg_bytes(tmp_path: Path) -> bytes:
    return save(noise(64, 64), tmp_path / "source" / "whole.jpg").read_bytes()


def test_broken_files_are_named(tmp_path: Path) -> None:
    whole = jpeg_bytes(tmp_path)
    cases = {
        "zero.jpg": (b"", "is empty"),
        "text.jpg": (b"hello, this is not a picture", "is not an image"),
        "truncated.jpg": (whole[: len(whole) // 2], "truncated"),
        "header.jpg": (whole[:100], r"truncated|is not an image"),
    }
    for name, (content, message) in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message) as raised:
            load_images([tmp_path / "source" / "whole.jpg", path])
        assert str(path) in str(raised.value)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif"])
def test_a_file_cut_anywhere_raises_and_never_loads_half(tmp_path: Path, suffix: str) -> None:
    whole = save(noise(32, 32), tmp_path / f"whole.{suffix}").read_bytes()
    cut = tmp_path / f"cut.{suffix}"
    for keep in np.linspace(1, len(whole) - 32, 12).astype(int):
        cut.write_bytes(whole[:keep])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(ValueError, match=rf"cut\.{suffix}"):
                open_image(cut)


@pytest.mark.parametrize("limit", [3000, 1000])  # 64 x 64 pixels: above the limit, and above twice the limit
def test_a_decompression_bomb_is_refused_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    path = save(noise(64, 64), tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ValueError, match=rf"huge\.png is too large.*4096 pixels.*MAX_IMAGE_PIXELS`, now {limit}"):
        load_images(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4096)
    assert load_images(path, size=56).shape == (1, 3, 56, 56)


@pytest.mark.usefixtures("no_image_plugins")
def test_missing_paths_patterns_and_folders_without_images(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such image file or folder: .*gone\.jpg"):
        load_images([save(noise(8, 8), tmp_path / "here.png"), tmp_path / "gone.jpg"])
    with pytest.raises(FileNotFoundError, match=r"no file matches the pattern .*nothing\*\.jpg"):
        load_images(tmp_path / "nothing*.jpg")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"folder .*empty holds no images \(it is empty\)"):
        load_images(tmp_path / "empty")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.HEIC").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"texts holds no images \(only \.HEIC\).*\.jpg, .*\.webp") as raised:
        load_images(tmp_path / "texts")
    assert all(suffix in str(raised.value) for suffix in IMAGE_SUFFIXES)
    for nothing in ([], "", [""]):
        with pytest.raises(ValueError, match="no images given"):
            load_images(nothing)


def test_wrong_arguments(tmp_path: Path) -> None:
    path = save(noise(8, 8), tmp_path / "a.png")
    for wrong, kind in ((None, "NoneType"), (torch.zeros(2, 3, 8, 8), "Tensor"), ([path, noise(8, 8)], "Image")):
        with pytest.raises(TypeError, match=f"must be paths of files, folders or glob patterns; got a {kind}"):
            load_images(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mode is 'stretch'"):
        load_images(path, "stretch")
    for size in (0, 13, 100):
        with pytest.raises(ValueError, match=f"size {size} must be a positive multiple of patch_size 14"):
            load_images(path, size=size)


# ---- the way back to original pixels ----


def transforms_of(tmp_path: Path, mode: str, *sizes: tuple[int, int]) -> tuple[torch.Tensor, list[ImageTransform]]:
    paths = [save(noise(*size, seed=i), tmp_path / f"{i}.png") for i, size in enumerate(sizes)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_images(paths, mode, size=112, return_transforms=True)


SIZES = [(320, 240), (100, 300), (200, 200), (501, 97)]  # (width, height)


@pytest.mark.parametrize("mode", ["crop", "pad"])
@pytest.mark.parametrize("pixel_center", [0.5, 0.0])
def test_points_and_intrinsics_round_trip(tmp_path: Path, mode: str, pixel_center: float) -> None:
    images, transforms = transforms_of(tmp_path, mode, *SIZES)
    points = torch.rand(10, 2, generator=torch.Generator().manual_seed(0)) * 100
    intrinsic = torch.tensor([[80.0, 0, 50], [0, 90, 60], [0, 0, 1]])
    for (width, height), transform in zip(SIZES, transforms, strict=True):
        assert transform.original_size == (height, width)
        assert transform.model_size == tuple(images.shape[2:])
        there = transform.points_to_original(points, pixel_center=pixel_center)
        torch.testing.assert_close(transform.points_to_model(there, pixel_center=pixel_center), points)
        torch.testing.assert_close(transform.intrinsic_to_model(transform.intrinsic_to_original(intrinsic)), intrinsic)


@pytest.mark.parametrize("mode", ["crop", "pad"])
def test_a_mapped_intrinsic_projects_where_the_mapped_pixel_lies(tmp_path: Path, mode: str) -> None:
    _, transforms = transforms_of(tmp_path, mode, *SIZES)
    intrinsic = torch.tensor([[80.0, 0, 56], [0, 90, 42], [0, 0, 1]])
    ray = torch.tensor([0.3, -0.2, 1.0])
    for transform in transforms:
        expected = transform.points_to_original((intrinsic @ ray)[:2])
        torch.testing.assert_close((transform.intrinsic_to_original(intrinsic) @ ray)[:2], expected)


@pytest.mark.parametrize("mode", ["crop", "pad"])
def test_the_middle_stays_the_middle(tmp_path: Path, mode: str) -> None:
    """The principal point that a pose encoding implies, (W / 2, H / 2), is the middle of the original too."""
    images, transforms = transforms_of(tmp_path, mode, (320, 240), (100, 300))
    height, width = images.shape[2:]
    for transform, (original_width, original_height) in zip(transforms, [(320, 240), (100, 300)], strict=True):
        middle = transform.points_to_original(torch.tensor([width / 2, height / 2]))
        torch.testing.assert_close(middle, torch.tensor([original_width / 2, original_height / 2]))


def test_an_infinite_focal_length_stays_infinite_and_nothing_becomes_nan(tmp_path: Path) -> None:
    _, transforms = transforms_of(tmp_path, "crop", (100, 300))
    intrinsic = torch.tensor([[torch.inf, 0, 56], [0, torch.inf, 42], [0, 0, 1]])
    original = transforms[0].intrinsic_to_original(intrinsic)
    assert original.isinf().nonzero().tolist() == [[0, 0], [1, 1]]
    assert not original.isnan().any()


@pytest.mark.parametrize("mode", ["crop", "pad"])
def test_a_marked_pixel_is_found_where_the_transform_says(tmp_path: Path, mode: str) -> None:
    """Not only self-consistent: a bright block in the file appears at the mapped place in the tensor."""
    for width, height in [(336, 224), (112, 448), (448, 112)]:
        image = Image.new("RGB", (width, height))
        image.paste((255, 0, 0), (width // 2 - 20, height // 2 + 8, width // 2 - 4, height // 2 + 24))
        wide = save(noise(112, 112), tmp_path / "other.png")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            images, transforms = load_images(
                [save(image, tmp_path / "marked.png"), wide], mode, size=112, return_transforms=True
            )
        red = (images[0, 0] - images[0, 1]).clamp(min=0)
        rows, columns = torch.meshgrid(torch.arange(112) + 0.5, torch.arange(112) + 0.5, indexing="ij")
        found = torch.stack([(red * columns).sum(), (red * rows).sum()]) / red.sum()
        expected = transforms[0].points_to_model(torch.tensor([width / 2 - 12.0, height / 2 + 16.0]))
        assert (found - expected).abs().max() < 0.1


@pytest.mark.parametrize("mode", ["crop", "pad"])
def test_content_mask_is_false_exactly_on_the_white_padding(tmp_path: Path, mode: str) -> None:
    paths = [save(Image.new("RGB", size), tmp_path / f"{i}.png") for i, size in enumerate(SIZES)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images, transforms = load_images(paths, mode, size=112, return_transforms=True)
    for image, transform in zip(images, transforms, strict=True):
        assert torch.equal(transform.content_mask(), image[0] == 0)
