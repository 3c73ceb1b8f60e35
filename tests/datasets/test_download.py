"""Downloads from a server with faults: what arrives is the file, or there is an error and no file."""

import errno
import fcntl
import hashlib
import os
import ssl
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.datasets.server import Faults, serve
from vggt_int8.data import download as module
from vggt_int8.data.download import DownloadError, download

CONTENT = os.urandom(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "file.7z").write_bytes(CONTENT)
    return tmp_path / "site"


def get(site: Path, faults: Faults, **known: object) -> str:
    with serve(site, faults) as address:
        return download(f"{address}/file.7z", site.parent / "to" / "file.7z", pause=0.001, **known)  # type: ignore[arg-type]


def left(site: Path) -> list[str]:
    return sorted(path.name for path in (site.parent / "to").iterdir())


def test_a_file_comes_whole(site: Path) -> None:
    seen = []
    assert get(site, Faults(), size=len(CONTENT), sha256=SHA256, on_bytes=lambda *n: seen.append(n)) == SHA256
    assert (site.parent / "to" / "file.7z").read_bytes() == CONTENT
    assert left(site) == ["file.7z"]
    assert seen[0] == (0, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))


@pytest.mark.parametrize("etags", ["strong", "weak", "changing", ""])
@pytest.mark.parametrize("ranges", [True, False])
def test_breaks_are_gone_on_after(site: Path, etags: str, ranges: bool) -> None:
    faults = Faults(breaks=[100_000, 50_000, 1], etags=etags, ranges=ranges)
    assert get(site, faults) == SHA256
    assert left(site) == ["file.7z"]
    if etags == "strong" and ranges:
        assert faults.asked == ["", "bytes=100000-", "bytes=150000-", "bytes=150001-"]


def test_a_process_that_was_killed_is_gone_on_after(site: Path) -> None:
    faults, target = Faults(breaks=[100_000, *[0] * 5]), site.parent / "to" / "file.7z"
    with serve(site, faults) as address:
        with pytest.raises(DownloadError, match="brought nothing"):
            download(f"{address}/file.7z", target, pause=0.001)
        assert len(left(site)) == 2
        faults.breaks, faults.asked = [], []
        assert download(f"{address}/file.7z", target) == SHA256
    assert faults.asked == ["bytes=100000-"]


def test_another_version_is_begun_anew(site: Path) -> None:
    with pytest.raises(DownloadError):
        get(site, Faults(breaks=[100_000, *[0] * 9]))
    new = os.urandom(200_000)
    (site / "file.7z").write_bytes(new)
    assert get(site, Faults()) == hashlib.sha256(new).hexdigest()


@pytest.mark.parametrize("size", [50_000, 200_000, 300_000, 400_000])
def test_a_server_that_mixes_versions_is_seen_through(site: Path, size: int) -> None:
    """It sends the rest of the new version after the beginning of the old one, or says that there is no rest."""
    with pytest.raises(DownloadError):
        get(site, Faults(breaks=[100_000, *[0] * 9]))
    new = os.urandom(size)
    (site / "file.7z").write_bytes(new)
    assert get(site, Faults(if_range=False)) == hashlib.sha256(new).hexdigest()


def test_what_came_before_a_stall_stays(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a line that brings less than a piece between two stalls brings nothing, ever."""
    monkeypatch.setattr(module, "_TIMEOUT", 0.1)
    faults, waits = Faults(breaks=[100_000, 50_000], stall=0.3), []
    assert get(site, faults, on_wait=lambda *told: waits.append(told)) == SHA256
    assert faults.asked == ["", "bytes=100000-", "bytes=150000-"]
    assert waits == [("timed out", 0.001)] * 2


@pytest.mark.parametrize("bytes_there", [100_000, 299_999])
def test_versions_that_change_for_ever_end(site: Path, bytes_there: int) -> None:
    """Each answer belongs to another version than the one before it, and none comes whole."""
    with pytest.raises(DownloadError, match="brought nothing new"):
        get(site, Faults(breaks=[bytes_there] * 99, etags="changing", if_range=False))


def test_redirects_are_followed_within_reason(site: Path) -> None:
    (site / "elsewhere").write_bytes(CONTENT)
    faults = Faults(breaks=[100_000], redirects={"/file.7z": "/elsewhere"})
    assert get(site, faults) == SHA256
    assert faults.asked[-1] == "bytes=100000-"
    for place, says in (("/file.7z", "302"), ("file:///etc/passwd", "302"), ("ftp://host/a", "not followed")):
        faults = Faults(redirects={"/file.7z": place})
        with pytest.raises(DownloadError, match=says):
            get(site, faults)
        assert left(site) == [".file.7z.part", "file.7z"]


def test_no_redirect_leads_from_https_to_http() -> None:
    request = urllib.request.Request("https://host/file.7z")
    with pytest.raises(DownloadError, match=r"leads to http://host/file\.7z, which is not followed"):
        module._Redirects().redirect_request(request, None, 302, "Found", {}, "http://host/file.7z")
    assert module._Redirects().redirect_request(request, None, 302, "Found", {}, "https://other/file.7z") is not None


def test_a_busy_server_is_asked_again_and_a_refusal_is_not(site: Path) -> None:
    assert get(site, Faults(statuses=[503, 500, 429])) == SHA256
    faults = Faults(statuses=[403])
    with pytest.raises(DownloadError, match="403 Forbidden"):
        get(site, faults)
    assert len(faults.asked) == 1


@pytest.mark.parametrize(
    ("faults", "known", "says"),
    [
        (Faults(), {"size": 7}, "has 300,000 bytes on the server, not 7"),
        (Faults(), {"sha256": "0" * 64}, "damaged on the way"),
        (Faults(length=False), {}, "does not say how long"),
        (Faults(breaks=[1000], shift=5), {}, "asked for bytes from 1000"),
        (Faults(breaks=[1000], extra=9), {}, "sends more than the 300,000 bytes"),
        (Faults(packed="gzip"), {}, "packed by 'gzip'"),
    ],
)
def test_what_is_not_the_file_is_refused(site: Path, faults: Faults, known: dict, says: str) -> None:
    with pytest.raises(DownloadError, match=says):
        get(site, faults, **known)
    assert not (site.parent / "to" / "file.7z").exists()


def test_a_full_disk_is_told_beforehand(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(module, "check_place", lambda path, needed: asked.append(needed) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        get(site, Faults())
    assert asked == [len(CONTENT)]


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://host/file", "http://host:port/file", "http://a host/file"]
)
def test_other_addresses_are_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(DownloadError, match="no address of HTTP"):
        download(url, tmp_path / "file")


def test_a_certificate_that_nobody_vouches_for_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError(ssl.SSLCertVerificationError(1, "certificate verify failed"))

    monkeypatch.setattr(module, "_open", refuse)
    waits: list[object] = []
    with pytest.raises(DownloadError, match="certificate verify failed"):
        download("https://host/file", tmp_path / "file", on_wait=lambda *told: waits.append(told))
    assert waits == []


def test_two_processes_do_not_write_one_file(site: Path) -> None:
    (site.parent / "to").mkdir()
    with module._held(site.parent / "to" / ".file.7z.part"), pytest.raises(DownloadError, match="another process"):
        get(site, Faults())


def test_a_file_system_without_locks_will_do(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert get(site, Faults(breaks=[1000])) == SHA256
