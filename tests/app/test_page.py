"""The page over HTTP: what it serves, what it refuses, what it keeps; gradio's own habits are off."""

import errno
import json
import re
import tempfile
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vggt_int8.app import App, Limits, open_app

gradio = pytest.importorskip("gradio", reason="the page needs the extra app (constraints-app.txt)")

LIMITS = Limits(upload_bytes=50_000, images=4)


@pytest.fixture(scope="module")
def served(bare_checkpoint: Path) -> Iterator[App]:
    with open_app(str(bare_checkpoint), port=0, limits=LIMITS) as app:
        yield app


def ask(request: str | urllib.request.Request) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def upload(app: App, name: str, content: bytes) -> tuple[int, bytes]:
    mark = uuid.uuid4().hex
    head = f'--{mark}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    body = head.encode() + content + f"\r\n--{mark}--\r\n".encode()
    kind = {"Content-Type": f"multipart/form-data; boundary={mark}"}
    return ask(urllib.request.Request(f"{app.url}/gradio_api/upload", body, kind))


def test_it_is_on_this_machine_alone_and_reports_to_nobody(served: App) -> None:
    assert served.url.startswith("http://127.0.0.1:")
    config = json.loads(ask(f"{served.url}/config")[1])
    assert config["analytics_enabled"] is False
    assert config["run_history"] is False
    assert served.blocks.share is False
    page = ask(served.url)[1].decode()
    assert set(re.findall(r"(?:src|href)=[\"']https?://([a-z0-9.-]+)", page)) <= {"127.0.0.1"}


def test_the_model_is_named_without_its_place(served: App, bare_checkpoint: Path) -> None:
    told = ask(f"{served.url}/config")[1].decode()
    assert f"Model: `{bare_checkpoint.name}`" in told
    assert str(bare_checkpoint.parent) not in told + ask(served.url)[1].decode()


@pytest.mark.parametrize("path", ["/monitoring", "/monitoring/summary", "/gradio_api/runs"])
def test_pages_of_traffic_and_history_are_off(served: App, path: str) -> None:
    assert ask(served.url + path)[0] >= 400


def test_no_file_of_the_server_is_read_through_it(served: App, tmp_path: Path) -> None:
    beside = Path(tempfile.gettempdir()) / f"vggt-int8-secret-{uuid.uuid4().hex}.txt"
    secrets = [tmp_path / "secret.txt", beside, served.folder.path / "secret.txt"]
    try:
        for secret in secrets:
            secret.write_text("a secret of this machine")
        up = f"{served.folder.path}/files/../../{beside.name}"
        for path in (*secrets, up, Path("/etc/passwd"), Path(__file__), Path.cwd() / "README.md"):
            for prefix in ("/gradio_api/file=", "/file=", "/gradio_api/file/"):
                assert ask(f"{served.url}{prefix}{path}")[0] >= 400, f"{prefix}{path} was served"
    finally:
        beside.unlink()


def test_uploads_lie_in_the_folder_that_forgets_and_are_limited(served: App) -> None:
    code, content = upload(served, "small.png", b"x" * 1000)
    assert code == 200
    (place,) = json.loads(content)
    assert Path(place).resolve().is_relative_to(served.folder.path.resolve())
    assert upload(served, "large.png", b"x" * 100_000)[0] == 413
    assert not list(served.folder.path.rglob("large*"))


def test_closing_deletes_everything_and_says_nothing(bare_int8: Path, capfd: pytest.CaptureFixture[str]) -> None:
    app = open_app(str(bare_int8), port=0, limits=LIMITS)
    try:
        assert upload(app, "small.png", b"x")[0] == 200
        assert app.folder.path.is_dir()
    finally:
        app.close()
    assert not app.folder.path.exists()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(app.url, timeout=5)
    assert capfd.readouterr().out == ""


def test_a_visitor_learns_what_is_wrong_and_no_place_on_this_machine(served: App) -> None:
    from vggt_int8.app.page import _told

    folder = served.folder.path
    told = _told(ValueError(f"{folder}/results/1f/images/holiday photo.png is not an image"), folder)
    assert isinstance(told, gradio.Error)
    assert told.message == "holiday photo.png is not an image"
    full = _told(OSError(errno.ENOSPC, "No space left on device", f"{folder}/results/1f/2e/npz"), folder)
    assert full.message == "npz: No space left on device"
    fault = KeyError("a fault of the program")
    assert _told(fault, folder) is fault


def test_a_download_whose_images_are_gone_names_no_place_either(served: App, bare_checkpoint: Path) -> None:
    from vggt_int8.app.compared import compare_recipes
    from vggt_int8.app.models import Models
    from vggt_int8.app.page import _download

    results = served.folder.path / "results"
    image = results / "1f" / "images" / "photo.png"
    image.parent.mkdir(parents=True)
    Image.fromarray(np.full((28, 28, 3), 90, np.uint8)).save(image)
    found = compare_recipes(Models(str(bare_checkpoint)), ["fp32"], [image], results / "1f")
    image.unlink()  # forgotten: it is as old as its upload
    with pytest.raises(gradio.Error) as told:
        _download(0, results)(found, "colmap", 25.0)
    assert "photo.png" in told.value.message
    assert str(served.folder.path) not in told.value.message
