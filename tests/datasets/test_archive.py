"""Archives that nobody should unpack are refused, with nothing written; good ones come out whole."""

import stat
from collections.abc import Callable
from pathlib import Path

import py7zr
import pytest

from vggt_int8.data.archive import ArchiveError, unpack


@pytest.fixture
def pack(tmp_path: Path) -> Callable[[dict[str, bytes]], Path]:
    """Name in the archive -> content."""

    def make(files: dict[str, bytes]) -> Path:
        path = tmp_path / "archive.7z"
        with py7zr.SevenZipFile(path, "w") as file:
            for name, content in files.items():
                file.writestr(content, "x" * len(name))
                file.header.files_info.files[-1]["filename"] = name  # py7zr itself writes none that leaves the folder
        return path

    return make


def test_files_come_out_where_they_belong(pack: Callable[..., Path], tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "mine").write_text("stays")
    files = {"pipes/images/a.JPG": b"a" * 1000, "pipes/b.txt": b"b", "pipes/empty": b""}
    assert unpack(pack(files), target, most_bytes=2000) == sorted(files)
    assert {name: (target / name).read_bytes() for name in files} == files
    assert sorted(path.name for path in target.iterdir()) == ["mine", "pipes"]
    files["pipes/b.txt"] = b"new"
    unpack(pack(files), target, most_bytes=2000)
    assert (target / "pipes" / "b.txt").read_bytes() == b"new"


@pytest.mark.parametrize("name", ["/etc/passwd", "../out2", "a/../../b", "a\\..\\..\\b", "C:/x", "a/\0b", "n" * 300])
def test_names_that_leave_the_folder(pack: Callable[..., Path], tmp_path: Path, name: str) -> None:
    before = sorted(tmp_path.rglob("*"))
    archive = pack({"good": b"1", name: b"2"})
    with pytest.raises(ArchiveError):
        unpack(archive, tmp_path / "out", most_bytes=100)
    assert sorted(tmp_path.rglob("*")) == sorted([*before, archive])


def test_links_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to("/etc/passwd")
    with py7zr.SevenZipFile(tmp_path / "archive.7z", "w") as file:
        file.writeall(tmp_path / "in", "in")
    with pytest.raises(ArchiveError, match="'in/link', which is a link"):
        unpack(tmp_path / "archive.7z", tmp_path / "out", most_bytes=100)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_devices_are_refused(tmp_path: Path, kind: int) -> None:
    with py7zr.SevenZipFile(tmp_path / "archive.7z", "w") as file:
        file.writestr(b"1", "device")
        file.header.files_info.files[-1]["attributes"] = 0x8000 | (kind | 0o644) << 16
    with pytest.raises(ArchiveError, match="'device', which is no plain file"):
        unpack(tmp_path / "archive.7z", tmp_path / "out", most_bytes=100)
    assert not (tmp_path / "out").exists()


def test_bombs_are_refused(pack: Callable[..., Path], tmp_path: Path) -> None:
    archive = pack({"zeros": bytes(5_000_000)})
    assert archive.stat().st_size < 5_000
    with pytest.raises(ArchiveError, match="would unpack to 5,000,000 bytes"):
        unpack(archive, tmp_path / "out", most_bytes=1_000_000)


@pytest.mark.usefixtures("small_files")
def test_a_disk_that_fills_meanwhile_names_the_target(pack: Callable[..., Path], tmp_path: Path) -> None:
    """Not the hidden folder, which is gone by then; the archive stays for another attempt."""
    archive = pack({"pipes/a": b"1", "pipes/b": bytes(200_000)})
    with pytest.raises(OSError, match=r"File too large: '.*/out'"):
        unpack(archive, tmp_path / "out", most_bytes=10**6)
    assert not (tmp_path / "out").exists()
    assert archive.is_file()


@pytest.mark.parametrize("files", [{"a": b"1", "a/b": b"2"}, {"a/b": b"2", "a": b"1"}])
def test_a_file_that_is_a_folder_is_refused(pack: Callable[..., Path], tmp_path: Path, files: dict) -> None:
    with pytest.raises(ArchiveError, match="as a file and as a folder"):
        unpack(pack(files), tmp_path / "out", most_bytes=100)


@pytest.mark.parametrize(
    "names", [("a/B", "a/b"), ("straße", "STRASSE"), ("e\u0301", "é"), ("a", "A/b"), ("a/b", "a/./b")]
)
def test_names_that_are_one_file_elsewhere_are_refused(
    pack: Callable[..., Path], tmp_path: Path, names: tuple[str, str]
) -> None:
    """On a share of macOS or Windows the second would replace the first."""
    with pytest.raises(ArchiveError, match=r"one file where case|as a file and as a folder|more than once"):
        unpack(pack(dict.fromkeys(names, b"1")), tmp_path / "out", most_bytes=100)
    assert not (tmp_path / "out").exists()


def test_what_belongs_elsewhere_is_refused(pack: Callable[..., Path], tmp_path: Path) -> None:
    """An archive of one scene must not replace files of another, nor what is noted beside them."""
    for name in ("courtyard/a", ".archives.json", "PIPES/a"):
        archive = pack({"pipes/a": b"1", name: b"2"})
        with pytest.raises(ArchiveError, match="does not lie in pipes/"):
            unpack(archive, tmp_path / "out", most_bytes=100, below="pipes")
    assert not (tmp_path / "out").exists()
    assert unpack(pack({"./pipes/a": b"1"}), tmp_path / "out", most_bytes=100, below="pipes") == ["pipes/a"]


def test_an_archive_without_files_is_no_scene(pack: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="holds no files"):
        unpack(pack({}), tmp_path / "out", most_bytes=100)


def test_a_damaged_archive_changes_nothing(pack: Callable[..., Path], tmp_path: Path) -> None:
    archive = pack({"pipes/a": b"a" * 100_000, "pipes/b": bytes(range(256)) * 100})
    content = bytearray(archive.read_bytes())
    content[60] ^= 255
    archive.write_bytes(content)
    with pytest.raises(ArchiveError, match="damaged"):
        unpack(archive, tmp_path / "out", most_bytes=10**6)
    archive.write_bytes(b"<html>not found</html>")
    with pytest.raises(ArchiveError, match="no 7z archive"):
        unpack(archive, tmp_path / "out", most_bytes=10**6)
    assert not (tmp_path / "out").exists()


def test_a_link_in_the_target_does_not_lead_out(pack: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "pipes").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArchiveError, match="leads out"):
        unpack(pack({"pipes/a": b"1"}), tmp_path / "out", most_bytes=100)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_password_is_said(tmp_path: Path) -> None:
    with py7zr.SevenZipFile(tmp_path / "archive.7z", "w", password="secret") as file:
        file.writestr(b"1", "a")
    with pytest.raises(ArchiveError, match="password"):
        unpack(tmp_path / "archive.7z", tmp_path / "out", most_bytes=100)
