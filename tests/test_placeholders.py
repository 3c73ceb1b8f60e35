"""What stands in the place of a file that did not come: told alike for pictures, weights and configurations."""

from pathlib import Path

import pytest

from vggt_int8.placeholders import placeholder
from vggt_int8.saves import CheckpointError
from vggt_int8.saves.pickles import load_pickle
from vggt_int8.saves.plain_files import read_json

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
PAGES = (
    b"<!doctype html><title>404</title>",
    b"\n  <HTML lang=en>",
    b"\xef\xbb\xbf<html><svg/>",
    b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
)


def test_pointers_and_pages() -> None:
    assert placeholder(LFS, "picture") == "a pointer of Git LFS, not the picture itself: `git lfs pull` fetches it"
    for page in PAGES:
        assert placeholder(page, "file") == "a web page, not the file itself: download the file itself"


@pytest.mark.parametrize("start", [b"", b"\xff\xd8\xff", b"{}", b'<?xml version="1.0"?>\n<svg/>', b"a < b"])
def test_other_files_are_themselves(start: bytes) -> None:
    assert placeholder(start, "file") is None


@pytest.mark.parametrize(("content", "message"), [(LFS, "is a pointer of Git LFS"), (PAGES[0], "is a web page")])
def test_checkpoints_say_it_too(tmp_path: Path, content: bytes, message: str) -> None:
    for name, read in {"config.json": read_json, "weights.pt": lambda path: load_pickle(str(path))}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            read(tmp_path / name)
