"""Resumable downloads of single files over HTTP, verified by size and hash. The target only appears when it is
complete.

Partial data is stored in `.NAME.part` next to the target, and `.NAME.part.json` records the version of the file (ETag
or date, and length). If the server has a different version, or does not support ranges, the download starts again.
"""

import hashlib
import http.client
import json
import os
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from typing import Any

from vggt_int8.disk import check_place, naming
from vggt_int8.files import write_json
from vggt_int8.files.hidden import lock

ATTEMPTS = 5  # in a row without a byte
_CHUNK = 1 << 20
_TIMEOUT = 60.0  # seconds without a byte
_BREAKS = (http.client.HTTPException, ConnectionError, TimeoutError, urllib.error.URLError, ssl.SSLError)


class DownloadError(RuntimeError):
    """A file that cannot be downloaded or has the wrong contents. The message gives the address and a solution."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Only follow redirects to HTTP(S), and never from HTTPS to HTTP."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        allowed = "https://" if req.type == "https" else ("http://", "https://")
        if not newurl.lower().startswith(allowed):
            raise DownloadError(f"{req.full_url} leads to {newurl}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_open = urllib.request.build_opener(_Redirects).open


@dataclass(frozen=True)
class _Version:
    """Version of a file on the server. tag: for If-Range; empty if the server gives none."""

    tag: str
    total: int


def download(
    url: str,
    target: Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    on_bytes: Callable[[int, int], None] = lambda done, total: None,
    on_wait: Callable[[str, float], None] = lambda reason, seconds: None,
    pause: float = 1.0,
) -> str:
    """Download `url` to `target`, creating its folder. Returns the sha256 of the contents.

    size, sha256: expected values, if they are known.
    on_bytes: called with (bytes present, total bytes).
    on_wait: called with the error and the seconds until the next attempt.
    pause: half of the wait before the second attempt; each attempt without progress doubles the wait.

    Raises `DownloadError`, keeping partial data unless it is wrong, and OSError, before downloading, if the disk is too
    small.
    """
    if not re.match(r"https?://", url):
        raise DownloadError(f"{url} is no address of HTTP")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = _part(target)
    with _held(part) as file:
        furthest, failures = file.seek(0, os.SEEK_END), 0
        while (reason := _attempt(url, part, file, size, on_bytes)) is not None:
            there = file.seek(0, os.SEEK_END)
            # A server that mixes versions may send the same bytes repeatedly, which is not progress.
            failures = 0 if there > furthest else failures + 1
            furthest = max(furthest, there)
            if failures >= ATTEMPTS:
                raise DownloadError(
                    f"{url}: {reason}; {failures} attempts brought nothing new. Run the command again later"
                )
            seconds = pause * 2**failures
            on_wait(reason, seconds)
            time.sleep(seconds)
        return _finish(url, part, file, target, sha256)


def _attempt(
    url: str, part: Path, file: BufferedRandom, size: int | None, on_bytes: Callable[[int, int], None]
) -> str | None:
    """One request. Returns None when the file is complete, otherwise the reason. Raises `DownloadError` if a retry is
    pointless.
    """
    there = file.seek(0, os.SEEK_END)
    try:
        return None if _fetch(url, part, file, size, on_bytes) else "the connection ended early"
    except urllib.error.HTTPError as error:
        if error.code == 416 and there:  # it has fewer bytes by now
            file.truncate(0)
        elif error.code < 500 and error.code not in (408, 429):
            raise DownloadError(f"{url}: the server says {error.code} {error.reason}") from error
        return f"the server says {error.code} {error.reason}"
    except http.client.InvalidURL as error:
        raise DownloadError(f"{url} is no address of HTTP: {error}") from error
    except _BREAKS as error:
        reason = getattr(error, "reason", "")
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise DownloadError(f"{url}: {reason}") from error
        return str(reason or error) or type(error).__name__


def digest_of(path: Path, sha256: str | None) -> str:
    """The sha256 of a file that is there already. Raises `DownloadError` if it differs from `sha256`."""
    if not (part := _part(path)).exists():
        _note(part).unlink(missing_ok=True)  # of a download that was killed before its last step
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 and digest != sha256:
        raise DownloadError(f"{path}: its sha256 is {digest}, not {sha256}: move it away, and it is fetched anew")
    return digest


@contextmanager
def _held(part: Path) -> Iterator[BufferedRandom]:
    """The partial file, locked against other writers."""
    with naming(part), part.open("ab+") as file:
        if lock(file.fileno()) is False:  # None: a file system without locks
            raise DownloadError(f"{part} is being downloaded by another process")
        yield file


def _fetch(url: str, part: Path, file: BufferedRandom, size: int | None, on_bytes: Callable[[int, int], None]) -> bool:
    """Request the missing bytes and append them. Returns whether the file is complete."""
    have, known = file.seek(0, os.SEEK_END), _known(part, url)
    if have and (known is None or not known.tag or have > known.total):
        file.truncate(have := 0)
    if known is not None and have and have == known.total:
        return True
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity", "User-Agent": "vggt-int8"})
    if have and known is not None:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", known.tag)
    with _open(request, timeout=_TIMEOUT) as answer:
        version = _version(url, answer, have)
        if answer.status != 206:
            file.truncate(have := 0)
        elif known is None or version.total != known.total or (version.tag and version.tag != known.tag):
            file.truncate(0)  # a server that sends the rest of another version all the same
            return False
        if size is not None and version.total != size:
            raise DownloadError(f"{url} has {version.total:,} bytes on the server, not {size:,}: it is another file")
        check_place(part, version.total - have)
        write_json(_note(part), {"url": url, "tag": version.tag, "total": version.total})
        on_bytes(have, version.total)
        while chunk := answer.read1(_CHUNK):  # not `read`, which drops what came before a stall
            have += len(chunk)
            if have > version.total:
                file.truncate(0)
                raise DownloadError(f"{url}: the server sends more than the {version.total:,} bytes that it says")
            file.write(chunk)
            on_bytes(have, version.total)
    file.flush()
    return have == version.total


def _version(url: str, answer: "http.client.HTTPResponse", have: int) -> _Version:
    """The version on the server. Raises `DownloadError` for an unusable response."""
    headers = answer.headers
    if (packed := headers.get("Content-Encoding", "identity")) != "identity":
        raise DownloadError(f"{url}: the server sends it packed by {packed!r:.80}, which it was asked not to do")
    if answer.status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("Content-Range", ""))
        if found is None or int(found[1]) != have:
            raise DownloadError(
                f"{url}: asked for bytes from {have}, the server sends {headers.get('Content-Range', 'no range')!r:.80}"
            )
        total = int(found[2])
    else:
        length = headers.get("Content-Length", "")
        if not length.isdecimal():
            raise DownloadError(f"{url}: the server does not say how long it is, so a break could not be told")
        total = int(length)
    tag = headers.get("ETag", "")
    # A weak tag does not guarantee identical bytes; If-Range also accepts a date.
    return _Version(tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", ""), total)


def _known(part: Path, url: str) -> _Version | None:
    """The version of the partial file; None if it is unknown or belongs to another address."""
    try:
        found = json.loads(_note(part).read_text(encoding="utf-8"))
        return _Version(str(found["tag"]), int(found["total"])) if found["url"] == url else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _part(target: Path) -> Path:
    return target.with_name(f".{target.name}.part")


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _finish(url: str, part: Path, file: BufferedRandom, target: Path, sha256: str | None) -> str:
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 is not None and digest != sha256:
        part.unlink()
        _note(part).unlink(missing_ok=True)
        raise DownloadError(
            f"{url}: its sha256 is {digest}, not {sha256}: it was damaged on the way, or is another file"
        )
    os.fsync(file.fileno())
    part.replace(target)
    _note(part).unlink(missing_ok=True)
    return digest
