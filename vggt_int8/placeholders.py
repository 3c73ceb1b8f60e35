"""Detects what a download may leave in place of a file: a Git LFS pointer, or an HTML error page."""

import re

LOOKED_AT = 4096  # bytes from a file's start that are enough to tell


def placeholder(start: bytes, what: str) -> str | None:
    """What a file with this beginning is, and what to do, as the end of a sentence: "a web page, not …"; None if
    neither.

    start: `LOOKED_AT` bytes, or all of a shorter file.
    what: name of the expected kind of file.
    """
    if start.startswith(b"version https://git-lfs"):
        return f"a pointer of Git LFS, not the {what} itself: `git lfs pull` fetches it"
    if not re.match(rb"(\xef\xbb\xbf)?\s*<", start):
        return None
    is_html = re.search(rb"<(!doctype html|html)", start, re.IGNORECASE)
    if is_html or b"<svg" not in start:  # other markup tells of errors, too, as stores of files answer in XML
        return f"a web page, not the {what} itself: download the {what} itself"
    return None
