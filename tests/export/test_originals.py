"""The original images beside an export: upright, of the size that the cameras speak of, under the names they have."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vggt_int8.export import ExportOptions, Scene, write_scene
from vggt_int8.export.naming import image_names
from vggt_int8.images import ImageTransform

SIZE = (84, 56)  # (W, H) as it is looked at


@pytest.fixture
def photos(tmp_path: Path, scene: Scene) -> Scene:
    """Two photographs of a scene; the second is stored turned, in a folder with a space."""
    root = tmp_path / "photos"
    (root / "my phone").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (7, 12, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).resize(SIZE)
    picture.save(root / "a.png")
    orientation = Image.Exif()
    orientation[0x0112] = 6
    picture.transpose(Image.Transpose.ROTATE_90).save(root / "my phone" / "b.jpg", exif=orientation, quality=95)
    whole = ImageTransform((56, 84), scene.size, (0.5, 0.5), (0, 0))
    return replace(scene, files=[root / "a.png", root / "my phone" / "b.jpg"], transforms=[whole, whole])


def test_turned_photographs_are_written_upright_and_others_as_they_are(tmp_path: Path, photos: Scene) -> None:
    (tmp_path / "out").mkdir()
    options = ExportOptions(images="copy", image_scales=(2, 4))
    summary = write_scene(tmp_path / "out", photos, ("colmap", "transforms"), options)
    assert summary["images"] == {"linked": 0, "copied": 1, "written_upright": 1, "scales": [2, 4]}
    assert (tmp_path / "out/images/a.png").read_bytes() == (tmp_path / "photos/a.png").read_bytes()
    with Image.open(tmp_path / "out/images/my phone/b.jpg") as turned, Image.open(tmp_path / "photos/a.png") as plain:
        assert turned.size == SIZE
        assert turned.getexif().get(0x0112, 1) == 1
        difference = np.abs(np.asarray(turned, np.int16) - np.asarray(plain.convert("RGB"), np.int16))
        assert difference.mean() < 5
    for scale in (2, 4):
        with Image.open(tmp_path / f"out/images_{scale}/my phone/b.jpg") as small:
            assert small.size == (SIZE[0] // scale, SIZE[1] // scale)
    assert '"images/my phone/b.jpg"' in (tmp_path / "out/transforms.json").read_text()


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_turned_photographs_of_other_formats_are_written_upright(tmp_path: Path, photos: Scene, suffix: str) -> None:
    with Image.open(tmp_path / "photos/a.png") as plain:
        expected = np.asarray(plain)
        orientation = Image.Exif()
        orientation[0x0112] = 6
        turned = tmp_path / f"photos/turned.{suffix}"
        plain.transpose(Image.Transpose.ROTATE_90).save(turned, exif=orientation, lossless=True)
    (tmp_path / "out").mkdir()
    scene = replace(photos, files=[tmp_path / "photos/a.png", turned])
    summary = write_scene(tmp_path / "out", scene, ("glb",), ExportOptions(images="link"))
    assert (summary["images"]["linked"], summary["images"]["written_upright"]) == (1, 1)
    with Image.open(tmp_path / "out/images" / turned.name) as upright:
        assert upright.getexif().get(0x0112, 1) == 1
        assert np.array_equal(np.asarray(upright), expected)


def test_links_lead_to_the_photographs_but_not_to_turned_ones(tmp_path: Path, photos: Scene) -> None:
    (tmp_path / "out").mkdir()
    write_scene(tmp_path / "out", photos, ("colmap",), ExportOptions(images="link"))
    assert (tmp_path / "out/images/a.png").readlink() == tmp_path / "photos/a.png"
    assert not (tmp_path / "out/images/my phone/b.jpg").is_symlink()


def test_without_copies_turned_photographs_are_spoken_of(tmp_path: Path, photos: Scene) -> None:
    (tmp_path / "out").mkdir()
    with pytest.warns(UserWarning, match=r"1 images are stored turned, with an EXIF orientation \(my phone/b\.jpg\)"):
        write_scene(tmp_path / "out", photos, ("colmap",))


def test_names_that_files_do_not_have_are_spoken_of(tmp_path: Path, scene: Scene) -> None:
    twice = replace(scene, files=[Path("/p/1.jpg"), Path("/p/1.jpg")])
    with pytest.warns(UserWarning, match=r"1 images have names that their files do not have \(1_2\.jpg\)"):
        write_scene(tmp_path, twice, ("colmap",))


def test_names_that_stop_a_loader_are_spoken_of(tmp_path: Path, scene: Scene) -> None:
    with pytest.warns(UserWarning, match=r"1 images have names with letters beyond ASCII \(caf\u00e9\.jpg\)"):
        write_scene(tmp_path, replace(scene, names=["a.jpg", "caf\u00e9.jpg"]), ("colmap",))


def test_what_cannot_be_copied_is_named(tmp_path: Path, photos: Scene, scene: Scene) -> None:
    (tmp_path / "out").mkdir()
    copy = ExportOptions(images="copy", image_scales=(2,))
    with pytest.raises(ValueError, match=r"2 images have no file of their own to copy: 1\.jpg, 1_2\.jpg"):
        write_scene(tmp_path / "out", scene, ("glb",), copy)
    (tmp_path / "photos/a.png").unlink()
    (tmp_path / "other").mkdir()
    with pytest.raises(FileNotFoundError, match=r"a\.png"):
        write_scene(tmp_path / "other", photos, ("glb",), copy)
    Image.new("RGB", (10, 10)).save(tmp_path / "photos/a.png")
    (tmp_path / "third").mkdir()
    with pytest.raises(ValueError, match=r"a\.png has \(10, 10\) pixels \(H, W\) and had \(56, 84\)"):
        write_scene(tmp_path / "third", photos, ("glb",), ExportOptions(images="link"))


def test_damaged_exif_is_no_damage_of_the_picture(tmp_path: Path, photos: Scene) -> None:
    with Image.open(tmp_path / "photos/a.png") as picture:
        picture.save(tmp_path / "photos/a2.png", exif=b"Exif\0\0" + b"junk" * 20)
    scene = replace(photos, files=[tmp_path / "photos/a2.png", tmp_path / "photos/my phone/b.jpg"])
    (tmp_path / "out").mkdir()
    summary = write_scene(tmp_path / "out", scene, ("glb",), ExportOptions(images="copy"))
    assert (summary["images"]["copied"], summary["images"]["written_upright"]) == (1, 1)


def test_names_are_relative_to_the_folder_that_all_share_and_unique(scene: Scene) -> None:
    def names(*files: str | None) -> list[str]:
        return image_names(replace(scene, files=[None if file is None else Path(file) for file in files]))

    assert names("/p/a/1.jpg", "/p/b/1.jpg") == ["a/1.jpg", "b/1.jpg"]
    assert names("/p/a b/1.jpg", "/p/a b/2.jpg") == ["1.jpg", "2.jpg"]
    assert names("/p/1.jpg", "/p/1.jpg") == ["1.jpg", "1_2.jpg"]
    assert names("/p/caf\udce9.jpg", "/p/ü 照.jpg") == ["caf%E9.jpg", "ü 照.jpg"]
    assert names("/p/1.jpg", None) == ["1.jpg", "1_2.jpg"], "of a/1.jpg and b/1.jpg the last part"
