"""`vggt-int8 app`: what is said before a page is served, and where it is."""

import json
import socket
import sys
from pathlib import Path

import pytest

from vggt_int8.app import App


def test_what_stands_in_the_way_is_said(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port} cannot be listened on" in cli("app", "--port", port, code=2)
    assert "Error:" in cli("app", "--model", tmp_path / "gone", "--port", 0, code=2)
    monkeypatch.delitem(sys.modules, "vggt_int8.app.page", raising=False)
    monkeypatch.delattr("vggt_int8.app.page", raising=False)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert "pip install 'vggt-int8[app]'" in cli("app", "--port", 0, code=2)


def test_the_address_is_the_result(cli, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gradio", reason="the page needs the extra app (constraints-app.txt)")
    monkeypatch.setattr(App, "wait", lambda self: None)
    document = json.loads(cli("app", "--model", tiny, "--port", 0, "--json"))
    assert document["url"].startswith("http://127.0.0.1:")
    assert document["model"] == str(tiny)
