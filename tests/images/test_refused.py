"""Files that are no images are refused by what they are, before any is decoded."""

import os
from pathlib import Path

import pytest
from PIL import Image

from tests.images.pictures import save, scene
from vggt_int8 import load_images
from vggt_int8.images import open_image


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
