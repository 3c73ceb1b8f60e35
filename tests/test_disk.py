"""A full disk is named whoever says it, and a place that cannot be written is found before the work."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from shutil import copyfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from vggt_int8 import disk
from vggt_int8.disk import check_place, message_of, naming
from vggt_int8.files import staged_folder, write_whole

NOISE = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
WRITERS: dict[str, Callable[[Path], object]] = {
    "NumPy": lambda path: np.save(path, NOISE),
    "Pillow": lambda path: Image.fromarray(NOISE).save(path, "PNG"),
    "safetensors": lambda path: save_file({"x": torch.zeros(2**16)}, path),
    "bytes": lambda path: path.write_bytes(bytes(2**17)),
    "ours": lambda path: write_whole(path, bytes(2**17)),
    "a copy": lambda path: copyfile(torch.__file__.replace("__init__.py", "_tensor.py"), path),
}


@pytest.mark.parametrize("who", WRITERS)
@pytest.mark.usefixtures("small_files")
def test_whoever_meets_the_limit_the_output_is_named_and_nothing_stays(tmp_path: Path, who: str) -> None:
    def write() -> None:
        with staged_folder(tmp_path / "out", entries=["x"]) as folder:
            WRITERS[who](folder / "x")

    with pytest.raises(OSError, match="File too large") as caught:
        write()
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == str(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), errno.ENOSPC),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), errno.ENOSPC),
        (RuntimeError("[enforce fail at inline_container.cc:1] . write failed: No space left on device"), errno.ENOSPC),
        (OSError("90000 requested and 4096 written"), errno.ENOSPC),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), errno.EDQUOT),
    ],
    ids=str,
)
def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, number: int) -> None:
    usage = os.statvfs(tmp_path)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 0, "of": usage}))
    with pytest.raises(OSError, match=os.strerror(number)) as caught, naming(tmp_path / "out"):
        raise error
    assert (caught.value.errno, caught.value.filename) == (number, str(tmp_path / "out"))
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [ConnectionResetError(errno.ECONNRESET, "Connection reset"), FileNotFoundError(2, "no", "a.jpg"), ValueError("no")],
    ids=str,
)
def test_other_errors_stay_as_they_are(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, naming(tmp_path):
        raise error
    assert caught.value is error


def test_a_place_is_checked_without_leaving_a_trace(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    check_place(tmp_path / "a" / "b")
    check_place(tmp_path / "file")
    with pytest.raises(NotADirectoryError, match=r"file is a file.*file/out'"):
        check_place(tmp_path / "file" / "out")
    with pytest.raises(FileExistsError, match=r"a link to nowhere \(.*gone\).*nowhere'"):
        check_place(tmp_path / "nowhere")
    with pytest.raises(OSError, match=r"No space left on device: about .* MB are needed and .* MB free.*out'"):
        check_place(tmp_path / "out", 1e30)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "nowhere"]


def test_needs_of_less_than_a_megabyte_are_told_from_what_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 580_000}))
    with pytest.raises(OSError, match=r"about 0\.8 MB are needed and 0\.6 MB free"):
        check_place(tmp_path / "out", 753_202)


def test_a_place_that_is_not_ours_to_write_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # root may write everywhere
    with pytest.raises(PermissionError, match=r"not for you to write.*out'"):
        check_place(tmp_path / "out")


def test_what_an_error_says_has_a_name_and_no_number() -> None:
    assert message_of(OSError(errno.ENOSPC, "No space left on device", "out/a b")) == "out/a b: No space left on device"
    assert message_of(OSError(errno.EIO, "Input/output error")) == "Input/output error"
    assert message_of(OSError("without a number")) == "without a number"
    assert message_of(ValueError("two\nlines")) == "two lines"
