"""The stand-in of the Hub against huggingface_hub: files come back exactly; bad requests are refused."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_standin.protocol import PART_SIZE, TOKEN
from tests.hub_standin.server import HubServer

UPLOAD = """
import sys
from huggingface_hub import HfApi
api = HfApi()
repo = api.create_repo(sys.argv[1], exist_ok=True)
print(repo.repo_id, api.upload_folder(repo_id=repo.repo_id, folder_path=sys.argv[2]).oid)
"""
DOWNLOAD = """
import sys
from huggingface_hub import snapshot_download
print(snapshot_download(sys.argv[1], revision=sys.argv[2]))
"""


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


def client(hub: HubServer, home: Path, program: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run `program` in a fresh process that knows no Hub but this one and has an empty cache."""
    environment = {**os.environ, **hub.environment(str(home))}
    command = [sys.executable, "-c", program, *args]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def write_folder(folder: Path) -> dict[str, bytes]:
    """A folder with every kind of transfer: regular files, an empty one, small and multipart LFS objects."""
    files = {
        "README.md": "---\nlicense: other\n---\n# Zażółć\n".encode(),
        "config.json": b'{"img_size": 56}\n',
        "sub folder/empty.txt": b"",
        "sub folder/deep/a+b.txt": b"name that needs quoting",
        "model.safetensors": bytes(range(256)) * 100,
        "big.bin": b"".join(hashlib.sha256(b"%d" % i).digest() for i in range((2 * PART_SIZE + 12345) // 32)),
    }
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return files


def read_folder(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_upload_folder_comes_back_byte_for_byte(hub: HubServer, tmp_path: Path) -> None:
    files = write_folder(tmp_path / "in")
    up = client(hub, tmp_path / "home1", UPLOAD, "tiny", str(tmp_path / "in"))
    assert up.returncode == 0, up.stderr
    repo_id, commit = up.stdout.split()
    assert repo_id == "me/tiny"
    stored = hub.repos[repo_id].commits[commit]
    assert {name: hub.content(file) for name, file in stored.items()} == files
    assert {name for name, file in stored.items() if file.sha256} == {"model.safetensors", "big.bin"}
    puts = [path for method, path, status in hub.log if method == "PUT" and status == 200]
    assert len(puts) == 1 + 3  # one object in one piece, one in three parts

    down = client(hub, tmp_path / "home2", DOWNLOAD, repo_id, "main")
    assert down.returncode == 0, down.stderr
    assert read_folder(Path(down.stdout.strip())) == files
    assert Path(down.stdout.strip()).name == commit
    assert hub.failures == []


@pytest.mark.slow
def test_second_commit_keeps_the_first(hub: HubServer, tmp_path: Path) -> None:
    files = write_folder(tmp_path / "in")
    first = client(hub, tmp_path / "home", UPLOAD, "tiny", str(tmp_path / "in")).stdout.split()[1]
    (tmp_path / "in" / "config.json").write_bytes(b"{}")
    second = client(hub, tmp_path / "home", UPLOAD, "tiny", str(tmp_path / "in")).stdout.split()[1]
    puts = [path for method, path, _ in hub.log if method == "PUT"]
    assert len(puts) == 4, "unchanged objects must not be sent again"
    for commit, config in ((first, files["config.json"]), (second, b"{}")):
        down = client(hub, tmp_path / commit, DOWNLOAD, "me/tiny", commit)
        assert read_folder(Path(down.stdout.strip())) == files | {"config.json": config}
    assert hub.failures == []


@pytest.mark.parametrize(
    ("repo_id", "revision", "expected"),
    [("me/absent", "main", "RepositoryNotFoundError"), ("me/tiny", "no-branch", "RevisionNotFoundError")],
)
def test_clients_see_the_hubs_errors(
    hub: HubServer, tmp_path: Path, repo_id: str, revision: str, expected: str
) -> None:
    call(hub, "POST", "/api/repos/create", {"name": "tiny"})
    down = client(hub, tmp_path / "home", DOWNLOAD, repo_id, revision)
    assert down.returncode == 1
    assert expected in down.stderr


def test_upload_without_the_token_is_refused(hub: HubServer, tmp_path: Path) -> None:
    write_folder(tmp_path / "in")
    program = "import os; os.environ['HF_TOKEN'] = 'hf_wrong'\n" + UPLOAD
    up = client(hub, tmp_path / "home", program, "tiny", str(tmp_path / "in"))
    assert up.returncode == 1
    assert "401" in up.stderr
    assert hub.repos == {}


def call(
    hub: HubServer, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """One plain request with the token; `body` is sent as it is when bytes, else as JSON."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    all_headers = {"Authorization": f"Bearer {TOKEN}", **(headers or {})}
    request = urllib.request.Request(hub.url + path, data=data, headers=all_headers, method=method)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


CONTENT = b"0123456789" * 10
OID = hashlib.sha256(CONTENT).hexdigest()
NDJSON = {"Content-Type": "application/x-ndjson"}
HEADER_LINE = b'{"key": "header", "value": {"summary": "s"}}\n'


def lfs_line(oid: str, size: int) -> bytes:
    value = {"path": "w.bin", "algo": "sha256", "oid": oid, "size": size}
    return json.dumps({"key": "lfsFile", "value": value}).encode()


@pytest.mark.parametrize(
    ("method", "path", "body", "headers"),
    [
        ("PUT", f"/storage/{OID}?size=100", CONTENT[:-1] + b"x", {}),  # damaged on the way
        ("PUT", f"/storage/{OID}?size=99", CONTENT, {}),  # not the announced size
        ("POST", f"/complete/{OID}?size=100", {"oid": OID, "parts": [{"partNumber": 1, "etag": "a"}]}, {}),
        ("POST", "/me/tiny.git/info/lfs/verify", {"oid": OID, "size": 100}, {}),  # never uploaded
        ("POST", "/me/tiny.git/info/lfs/objects/batch", {"operation": "upload"}, {}),  # no LFS media type
        (
            "POST",
            "/api/models/me/tiny/commit/main",
            HEADER_LINE + lfs_line(OID, 100),
            NDJSON,
        ),  # unknown object
        ("POST", "/api/models/me/tiny/commit/main", lfs_line(OID, 100), NDJSON),  # no header line
        ("POST", "/api/models/me/tiny/commit/main", HEADER_LINE, {"Content-Type": "application/json"}),
        ("POST", "/api/models/me/tiny/preupload/main", {"files": [{"path": "../x", "size": 1}]}, {}),
        ("POST", "/api/models/me/tiny/preupload/main", b"no json", {}),
        ("POST", "/api/validate-yaml", {"content": "---\na: [\n---\n"}, {}),
        ("GET", "/api/nothing", None, {}),
    ],
)
def test_protocol_errors_are_refused_and_remembered(
    hub: HubServer, method: str, path: str, body: object, headers: dict[str, str]
) -> None:
    call(hub, "POST", "/api/repos/create", {"name": "tiny"})
    status, _, _ = call(hub, method, path, body, headers)
    assert 400 <= status < 500
    assert len(hub.failures) == 1


def test_files_are_served_with_ranges_and_the_hubs_headers(hub: HubServer) -> None:
    call(hub, "POST", "/api/repos/create", {"name": "tiny"})
    assert call(hub, "PUT", f"/storage/{OID}?size=100", CONTENT)[0] == 200
    status, _, answer = call(hub, "POST", "/api/models/me/tiny/commit/main", HEADER_LINE + lfs_line(OID, 100), NDJSON)
    assert status == 200
    commit = json.loads(answer)["commitOid"]
    address = f"{hub.url}/me/tiny/resolve/main/w.bin"
    request = urllib.request.Request(address, headers={"Range": "bytes=10-19"})
    with urllib.request.urlopen(request) as part:
        assert (part.status, part.read()) == (206, CONTENT[10:20])
        assert part.headers["Content-Range"] == "bytes 10-19/100"

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: object) -> None:
            return None

    head = urllib.request.Request(address, method="HEAD")
    with pytest.raises(urllib.error.HTTPError) as redirect:
        urllib.request.build_opener(Stay).open(head)
    assert redirect.value.code == 302
    assert redirect.value.headers["X-Repo-Commit"] == commit
    assert redirect.value.headers["X-Linked-ETag"] == f'"{OID}"'
    assert redirect.value.headers["X-Linked-Size"] == "100"
    beyond = urllib.request.Request(address, headers={"Range": "bytes=100-"})
    with pytest.raises(urllib.error.HTTPError, match="416"):
        urllib.request.urlopen(beyond)
