"""Commands on a model that lies on the Hub: what they download, and what they show while they do."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_standin.server import HubServer
from tests.warm import python

pytestmark = pytest.mark.slow  # a process for each command

UPLOAD = """
import sys
from huggingface_hub import HfApi
HfApi().create_repo("me/tiny.w8a8")
HfApi().upload_folder(repo_id="me/tiny.w8a8", folder_path=sys.argv[1])
"""


class Client:
    """Processes that know no Hub but the stand-in, and share one cache that is empty at first."""

    def __init__(self, hub: HubServer, home: Path) -> None:
        self.hub = hub
        self.environment = {**os.environ, **hub.environment(str(home)), "COLUMNS": "240"}  # as wide as `cli`

    def __call__(self, *command: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return python(*command, env=self.environment | (env or {}))

    def downloaded(self) -> set[int]:
        """HTTP status of everything that was read from the storage of large files: 200 whole, 206 by range."""
        return {status for _, path, status in self.hub.log if path.startswith("/storage/")}


@pytest.fixture(scope="module")
def client(tiny_int8: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with HubServer() as hub:
        client = Client(hub, tmp_path_factory.mktemp("home"))
        upload = client("-c", UPLOAD, tiny_int8)
        assert upload.returncode == 0, upload.stderr
        hub.log.clear()
        yield client
        assert hub.failures == []


def test_inspect_reads_headers_by_ranges(client: Client, cli, tiny_int8: Path) -> None:
    there = client("-m", "vggt_int8", "inspect", "me/tiny.w8a8")
    assert there.returncode == 0, there.stderr
    assert there.stdout.replace("me/tiny.w8a8", str(tiny_int8)) == cli("inspect", tiny_int8)
    assert client.downloaded() == {206}


def test_run_downloads_once_and_then_works_offline(client: Client, photos: list[Path], tmp_path: Path) -> None:
    command = ("-m", "vggt_int8", "run", "me/tiny.w8a8", photos[0], "-o")
    first = client(*command, tmp_path / "first")
    assert first.returncode == 0, first.stderr
    steps = r"(Loading me/tiny.w8a8|Reading (the rest of )?1 image|Reconstructing 1 image|Writing .*)"
    steps += r" \d+\.\d s(, [\d.]+ images/s)?"
    assert [line for line in first.stderr.splitlines() if not re.fullmatch(steps, line)] == []
    assert 200 in client.downloaded()
    second = client(*command, tmp_path / "second", env={"HF_HUB_OFFLINE": "1"})
    assert second.returncode == 0, second.stderr
    reports = [json.loads((tmp_path / run / "report.json").read_text()) for run in ("first", "second")]
    assert reports[0]["model_identity"] == reports[1]["model_identity"]
    assert reports[0]["model_identity"]["kind"] == "commit"
    assert re.fullmatch("[0-9a-f]{40}", reports[0]["model_identity"]["value"])
    maps = [next((tmp_path / run / "depth").glob("*.npy")).read_bytes() for run in ("first", "second")]
    assert maps[0] == maps[1]


def test_an_absent_model_is_named(client: Client) -> None:
    absent = client("-m", "vggt_int8", "inspect", "me/absent")
    assert absent.returncode == 2
    assert len(absent.stderr.splitlines()) == 1
    assert "'me/absent'" in absent.stderr
