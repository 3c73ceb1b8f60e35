"""Which files count as images, and that whatever does not is said in one line."""

import json
import os
import sys
import types
import warnings
from pathlib import Path

import pytest
from PIL import Image, ImageFile

from vggt_int8.images import find_images, image_suffixes, load_images
from vggt_int8.images.formats import _PLUGINS


def picture(path: Path, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 12), (200, 100, 50)).save(path, **options)
    return path


def remarks(source: object) -> tuple[list[str], list[str]]:
    """Names found, and what was said about the rest."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = find_images(source)
    assert all(warning.filename == __file__ for warning in caught)
    return [path.name for path in found], [str(warning.message) for warning in caught]


@pytest.mark.usefixtures("no_image_plugins")
def test_whatever_a_folder_holds_and_is_not_used_is_counted_with_its_reason(tmp_path: Path) -> None:
    for name in ("1.JPG", "2.jpeg"):
        picture(tmp_path / name, format="JPEG")
    for name in ("3.HEIC", "4.HEIC", "5.CR2", "6.mp4", "notes.txt", "bare", ".DS_Store"):
        (tmp_path / name).write_bytes(b"x")
    picture(tmp_path / "inside" / "7.png")
    (tmp_path / "8.jpg").symlink_to("/mnt/card/8.jpg")
    os.mkfifo(tmp_path / "9.jpg")
    found, said = remarks(tmp_path)
    assert found == ["1.JPG", "2.jpeg"]
    assert len(said) == 1
    assert "\n" not in said[0]
    for part in (
        "10 of 12 entries are not used",
        "2 .HEIC (3.HEIC, 4.HEIC; HEIC/HEIF needs Pillow's plugin: `pip install 'vggt-int8[heif]'`, or "
        "`pip install pillow-heif`)",
        "1 .CR2 (5.CR2; a camera's raw data: develop",
        "1 .mp4 (6.mp4; a video",
        "1 .txt (notes.txt)",
        "1 file without a suffix (bare)",
        "1 hidden file (.DS_Store)",
        f"1 folder inside (inside: pass {tmp_path / 'inside'} for 1 image)",
        "1 broken link (8.jpg -> /mnt/card/8.jpg)",
        "1 pipe, socket or device (9.jpg)",
    ):
        assert part in said[0]


def test_many_kinds_stay_one_line_and_all_are_counted(tmp_path: Path) -> None:
    picture(tmp_path / "1.jpg")
    for i in range(20):
        for name in range(i // 10 + 1):
            (tmp_path / f"{name}.k{i:02d}").write_text("")
    said = remarks(tmp_path)[1][0]
    assert "30 of 31 entries are not used" in said
    counts = [int(part.split()[0]) for part in said.partition("not used: ")[2].split("; ")]
    assert sum(counts) == 30
    assert said.endswith("8 of 8 other kinds")


def test_odd_names_stay_on_their_line(tmp_path: Path) -> None:
    picture(tmp_path / "1.jpg")
    (tmp_path / "a\nb\x1b[31m.txt").write_text("")
    assert r"1 .txt (a\nb\x1b[31m.txt)" in remarks(tmp_path)[1][0]


def test_a_whole_folder_and_a_list_of_files_say_nothing(tmp_path: Path) -> None:
    paths = [picture(tmp_path / name) for name in ("b.png", "a.png")]
    (tmp_path / "sub").mkdir()
    assert remarks(paths) == (["b.png", "a.png"], [])
    assert remarks(tmp_path / "*.png") == (["a.png", "b.png"], [])
    assert "1 folder inside (sub)" in remarks(tmp_path / "*")[1][0]


def test_folders_that_a_pattern_searches_are_not_left_out(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "b" / "1.png")
    assert remarks(tmp_path / "**") == (["1.png"], [])


def test_brackets_in_the_folder_of_a_pattern_are_its_name(tmp_path: Path) -> None:
    picture(tmp_path / "photos[1]" / "deep" / "1.png")
    picture(tmp_path / "photos1" / "2.png")
    folder = tmp_path / "photos[1]"
    assert remarks(f"{folder}/deep/*.png") == (["1.png"], [])
    assert remarks(f"{folder}/**/*.png") == (["1.png"], [])
    assert remarks(f"{tmp_path}/photos[12]/*.png") == (["2.png"], [])
    with pytest.raises(FileNotFoundError, match=r"no such image file or folder: .*photos\[1\]/9\.png"):
        find_images(folder / "9.png")


@pytest.mark.parametrize("pattern", ["**", "**/*.png", "*/**/**/*.png"])
def test_a_pattern_enters_each_folder_once(tmp_path: Path, pattern: str) -> None:
    picture(tmp_path / "scene" / "a" / "1.png")
    for number in range(4):  # each way around the loop has four to go on: 4^40 paths
        (tmp_path / "scene" / "a" / f"loop{number}").symlink_to("..")
    (tmp_path / "scene" / "z").symlink_to(picture(tmp_path / "elsewhere" / "2.png").parent)
    assert remarks(f"{tmp_path}/scene/{pattern}") == (["1.png", "2.png"], [])


def test_files_that_are_given_twice_are_told(tmp_path: Path) -> None:
    first, second = picture(tmp_path / "a.png"), picture(tmp_path / "b.png")
    found, said = remarks([tmp_path, first])
    assert found == ["a.png", "b.png", "a.png"]
    assert said == [f"files are given more than once, and used as often: {first}"]
    assert remarks([second, first])[1] == []


@pytest.mark.usefixtures("no_image_plugins")
def test_a_jpeg_that_is_named_heic_is_a_jpeg(tmp_path: Path) -> None:
    picture(tmp_path / "1.HEIC", format="JPEG")
    picture(tmp_path / "2.jxl", format="PNG")
    (tmp_path / "3.heic").write_bytes(b"\0\0\0\x18ftypheic")
    found, said = remarks(tmp_path)
    assert found == ["1.HEIC", "2.jxl"]
    assert "1 of 3 entries are not used: 1 .heic (3.heic; HEIC/HEIF needs" in said[0]
    assert load_images([tmp_path / "1.HEIC", tmp_path / "2.jxl"], size=14).shape == (2, 3, 14, 14)


def test_every_format_that_pillow_opens_counts_and_nothing_that_starts_a_program() -> None:
    suffixes = image_suffixes()
    assert {".jpg", ".jfif", ".jp2", ".mpo", ".apng", ".tga", ".qoi", ".psd", ".ico", ".pnm", ".webp"} <= suffixes
    assert not suffixes & {".ps", ".eps", ".pdf", ".mpg", ".mpeg", ".h5", ".hdf", ".grib", ".wmf", ".emf", ".palm"}


def test_postscript_is_not_handed_to_ghostscript_under_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*_: object, **__: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr("subprocess.check_call", started)
    for name in ("a.eps", "a.jpg"):
        picture(tmp_path / name, format="EPS")
        with pytest.raises(ValueError, match=rf"{name} cannot be read: PostScript would start Ghostscript"):
            load_images(tmp_path / name)


def test_a_format_that_the_user_registers_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Flat(ImageFile.ImageFile):
        format = "FLAT"

        def _open(self) -> None:
            self._mode, self._size = "RGB", (16, 12)

        def load(self) -> None:
            self.im = Image.new("RGB", self._size, (9, 9, 9)).im

    for table in ("OPEN", "EXTENSION"):
        monkeypatch.setattr(Image, table, dict(getattr(Image, table)))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    Image.register_open("FLAT", Flat, lambda start: start.startswith(b"FLAT"))
    Image.register_extension("FLAT", ".flat")
    (tmp_path / "a.FLAT").write_bytes(b"FLAT")
    assert load_images(tmp_path, size=14).shape == (1, 3, 14, 14)


def test_an_installed_plugin_is_used_without_being_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_PLUGINS, "ODD", "an_odd_plugin.registers")
    assert ".odd" not in image_suffixes()
    for table in ("OPEN", "EXTENSION"):
        monkeypatch.setattr(Image, table, dict(getattr(Image, table)))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    package = types.ModuleType("an_odd_plugin")
    package.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    package.__path__ = []
    monkeypatch.setitem(sys.modules, "an_odd_plugin", package)
    monkeypatch.setattr(
        "vggt_int8.images.formats.importlib.import_module",
        lambda name: (Image.register_open("ODD", ImageFile.ImageFile), Image.register_extension("ODD", ".odd")),
    )
    assert ".odd" in image_suffixes()


@pytest.mark.parametrize(
    "url", ["https://example.com/a.jpg", "s3://bucket/a.jpg", "hf://me/a.jpg", "data:image/png;base64,"]
)
def test_urls_are_answered_the_same_everywhere(tmp_path: Path, url: str) -> None:
    for source in (url, [picture(tmp_path / "a.png"), url], f"{url}/*", Path(url)):
        with pytest.raises(ValueError, match="is a URL: download the images"):
            find_images(source)


def test_home_and_file_uris_are_understood_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = picture(tmp_path / "my photos" / "a ü.png")
    for source in ("~/my photos", "~/my photos/a*.png", ["~/my photos/a ü.png"], Path("~/my photos")):
        assert find_images(source) == [path]
    for uri in (path.as_uri(), path.parent.as_uri(), f"file://localhost{path}", f"file://{tmp_path}/my photos/*.png"):
        assert find_images(uri) == [path]
    with pytest.raises(ValueError, match=r"names the host 'my'.*three slashes"):
        find_images("file://my/a.png")


def test_a_folder_with_folders_alone_says_what_to_pass(tmp_path: Path) -> None:
    picture(tmp_path / "scene" / "dslr" / "images" / "0.jpg")
    (tmp_path / "scene" / "sparse").mkdir()
    with pytest.raises(ValueError, match="2 folders inside") as raised:
        find_images(tmp_path / "scene")
    assert f"dslr: pass {tmp_path}/scene/dslr/images for 1 image, sparse" in str(raised.value)


def test_a_folder_with_broken_links_alone_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "0.jpg").symlink_to("/mnt/card/0.jpg")
    with pytest.raises(ValueError, match=r"only broken links\): 1 broken link \(0.jpg -> /mnt/card/0.jpg\)"):
        find_images(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"is a broken link: it points to /mnt/card/0\.jpg"):
        find_images(tmp_path / "0.jpg")


@pytest.mark.parametrize(
    ("names", "first", "second"),
    [
        (["1305031102.175304", "1305031102.2", "1305031102.21"], "1305031102.21.png", "1305031102.175304.png"),
        (["frame_1.5", "frame_1.25"], "frame_1.5.png", "frame_1.25.png"),
        (["-10", "-5", "3"], "3.png", "-5.png"),
        (["1e3", "2"], "1e3.png", "2.png"),
        (["2e3", "3e2"], "2e3.png", "3e2.png"),
    ],
)
def test_names_that_sort_differently_by_number_and_by_value_warn(
    tmp_path: Path, names: list[str], first: str, second: str
) -> None:
    paths = [picture(tmp_path / f"{name}.png") for name in names]
    said = remarks(tmp_path)[1]
    assert len(said) == 1
    assert f"{first} before {second}" in said[0]
    assert remarks(paths) == ([path.name for path in paths], [])  # a list has its own order


@pytest.mark.parametrize(
    "names",
    [
        ["1305031102.175304", "1305031102.200000", "1305031103.000001"],
        ["0001", "0002", "0010"],
        ["1", "2", "10"],
        ["IMG_2", "IMG_10", "other-3"],
        ["2021.3.5", "2021.12.1"],
    ],
)
def test_names_whose_orders_agree_say_nothing(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        picture(tmp_path / f"{name}.png")
    assert remarks(tmp_path) == ([f"{name}.png" for name in names], [])


def output(folder: Path) -> Path:
    """What a run leaves, by its layout."""
    for kind in ("depth", "confidence"):
        picture(folder / kind / "0000_a.png")
    (folder / "cameras.json").write_text(json.dumps({"format_version": 1, "convention": {}, "images": []}))
    return folder


def test_pictures_that_a_run_wrote_are_no_photographs(tmp_path: Path) -> None:
    out = output(tmp_path / "sc" / "out")
    picture(tmp_path / "sc" / "0.jpg")
    found, said = remarks(tmp_path / "sc" / "**")
    assert found == ["0.jpg"]
    assert "2 pictures that vggt-int8 wrote (0000_a.png, 0000_a.png)" in said[0]
    for source in (out / "depth", out / "confidence" / "*.png", out / "**"):
        with pytest.raises(ValueError, match=r"pictures? that vggt-int8 wrote"):
            find_images(source)
    with pytest.raises(ValueError, match=r"0000_a\.png is no photograph: vggt-int8 wrote it"):
        find_images([out / "depth" / "0000_a.png"])
    with pytest.raises(ValueError, match="holds no images") as raised:
        find_images(out)
    assert "pass" not in str(raised.value)


def test_the_sheet_of_a_run_is_no_photograph_and_another_sheet_is(tmp_path: Path) -> None:
    sheet, other = picture(output(tmp_path / "out") / "sheet.jpg"), picture(tmp_path / "sheet.jpg")
    with pytest.raises(ValueError, match=r"sheet\.jpg is no photograph: vggt-int8 wrote it"):
        find_images(sheet)
    assert find_images(tmp_path) == [other]


def test_a_run_into_the_folder_of_the_photographs_leaves_these_photographs(tmp_path: Path) -> None:
    picture(output(tmp_path) / "0.jpg")
    assert remarks(tmp_path)[0] == ["0.jpg"]


def test_a_folder_depth_of_somebody_else_is_read(tmp_path: Path) -> None:
    picture(tmp_path / "depth" / "0.png")
    (tmp_path / "report.json").write_text("[]")
    (tmp_path / "cameras.json").write_text("{")
    assert remarks(tmp_path / "depth") == (["0.png"], [])


def test_hidden_staging_folders_and_sheets_of_the_demo_are_no_photographs(tmp_path: Path) -> None:
    staged = picture(tmp_path / ".out.partial-0123abcd" / "depth" / "0000_a.png")
    sheet = picture(tmp_path / "demo" / "room" / "depth.png")
    (tmp_path / "demo" / "report.json").write_text(json.dumps({"format_version": 2, "scenes": {}, "rows": []}))
    for path in (staged, sheet):
        for source in (path, path.parent):
            with pytest.raises(ValueError, match="vggt-int8 wrote"):
                find_images(source)


def test_a_name_that_is_not_utf8_is_found(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    latin = path.rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    assert find_images(tmp_path) == [latin]
    assert find_images(latin.as_uri()) == [latin]
    assert "caf%E9.png" in latin.as_uri()
    assert load_images(tmp_path, size=14).shape == (1, 3, 14, 14)
