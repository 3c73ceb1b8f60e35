"""A Hub that is not there: said at once, where its own library would try for 23 seconds, and only if it is needed."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from vggt_int8 import VGGT, CheckpointError, VGGTConfig, VGGTInt8, VGGTOmegaInt8

COMMIT = "0" * 40
WAYS = [VGGTInt8.from_pretrained, VGGT.from_pretrained, VGGTConfig.from_pretrained]


@pytest.fixture
def cache(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    """A cache of the Hub that holds "owner/there"."""
    model = tmp_path / "models--owner--there"
    (model / "snapshots").mkdir(parents=True)
    (model / "snapshots" / COMMIT).symlink_to(tiny_checkpoint)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    return tmp_path


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A server that takes connections, which wait in its queue, and answers nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


def waiting(server: socket.socket) -> int:
    """How many connections wait in its queue, which is empty afterwards."""
    count = 0
    with suppress(BlockingIOError):
        while True:
            server.accept()[0].close()
            count += 1
    return count


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that anything sleeps for, such as the Hub's library between two attempts; none are slept."""
    found: list[float] = []
    monkeypatch.setattr(time, "sleep", found.append)
    return found


class Refusal(BaseHTTPRequestHandler):
    """What the Hub answers for a file of a repository that the account was not given access to."""

    def do_HEAD(self) -> None:
        self.send_response(403)
        self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("X-Error-Message", "Access to this model is restricted")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def gated() -> Iterator[str]:
    """The address of a server that refuses every file."""
    with HTTPServer(("127.0.0.1", 0), Refusal) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def refused() -> str:
    """An address that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def ask(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Have the Hub's library ask that server."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", address)


@pytest.mark.parametrize("load", WAYS, ids=lambda way: way.__self__.__name__)
@pytest.mark.parametrize("keywords", [{}, {"force_download": True}])
def test_a_hub_that_cannot_be_reached_is_asked_once(
    load: Callable[..., Any], keywords: dict[str, Any], cache: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    ask(monkeypatch, refused())
    name = "owner/there" if keywords else "owner/absent"
    with pytest.raises(
        CheckpointError, match=rf"cannot get the config.json of '{name}'.*cannot be reached \(.*'embedded' names"
    ):
        load(name, cache_dir=cache, **keywords)
    assert waits == []


def test_with_a_config_of_ones_own(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(monkeypatch, refused())
    for load in (VGGTInt8.from_pretrained, VGGT.from_pretrained):
        with pytest.raises(CheckpointError, match="cannot be reached"):
            load("owner/absent", cache_dir=cache, config=VGGTConfig())


def test_a_silent_hub_costs_one_timeout(
    silent: socket.socket, cache: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    ask(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.1)
    with pytest.raises(CheckpointError, match="cannot be reached"):
        VGGTInt8.from_pretrained("owner/absent", cache_dir=cache)
    assert (waiting(silent), waits) == (1, [])


@pytest.mark.parametrize(
    ("load", "keywords"),
    [*((load, {}) for load in WAYS), (VGGTOmegaInt8.from_pretrained, {"filename": "weights.pt"})],
    ids=lambda value: getattr(getattr(value, "__self__", None), "__name__", None),
)
def test_access_that_is_granted_on_request(
    load: Callable[..., Any], keywords: dict[str, Any], gated: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(monkeypatch, gated)
    wanted = keywords.get("filename", "config.json")
    with pytest.raises(CheckpointError, match=rf"cannot get the {wanted} of 'owner/absent': access is .*/owner/absent"):
        load("owner/absent", cache_dir=cache, **keywords)


@pytest.mark.parametrize("load", WAYS, ids=lambda way: way.__self__.__name__)
def test_what_is_not_to_be_asked_for(load: Callable[..., Any], cache: Path) -> None:
    with pytest.raises(CheckpointError, match="the Hub is not asked"):
        load("owner/absent", cache_dir=cache, local_files_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("load", WAYS, ids=lambda way: way.__self__.__name__)
def test_what_is_in_the_cache_needs_no_hub(
    load: Callable[..., Any], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(monkeypatch, refused())
    assert load("owner/there", cache_dir=cache) is not None
    assert load("owner/there", cache_dir=cache, local_files_only=True) is not None
