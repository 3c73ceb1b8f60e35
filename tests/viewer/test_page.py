"""What the page sends to a browser: points as fp32, cameras, controls that change them. No browser takes part."""

import io
import socket
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.viewer.conftest import HEIGHT, WIDTH
from vggt_int8.viewer import Settings, Viewer, open_viewer
from vggt_int8.viewer.page import OVERVIEW

pytest.importorskip("viser", reason="the viewer needs the extra viewer (constraints-app.txt)")


@pytest.fixture
def viewer(saved: Callable[..., Path]) -> Iterator[Viewer]:
    with open_viewer([saved("fp16"), saved("int8", noise=0.01)], port=0, settings=Settings(percentile=0)) as opened:
        assert opened.page.work.wait(timeout=30)
        yield opened


def control(viewer: Viewer, label: str) -> Any:
    handles = viewer.server.gui._gui_input_handle_from_uuid.values()
    return next(handle for handle in handles if getattr(handle, "label", None) == label)


def choose(viewer: Viewer, label: str, value: object, client: object = None) -> None:
    """As a visitor does; waits until the points are drawn."""
    handle = control(viewer, label)
    handle.value = value
    for callback in handle._impl.update_cb:
        callback(SimpleNamespace(client=client, target=handle))
    assert viewer.page.work.wait(timeout=30)


def points(viewer: Viewer, index: int) -> Any:
    return viewer.server.scene.get_handle_by_name(f"/points/{index}")


def test_points_are_sent_as_they_are(viewer: Viewer) -> None:
    cloud = viewer.reconstructions[0].cloud
    sent = points(viewer, 0)
    assert sent.precision == "float32"
    assert sent.points.dtype == np.float32
    assert np.array_equal(sent.points, cloud.points)
    assert np.array_equal(sent.colors, cloud.colors)
    assert sent.point_shading == "flat"


def test_controls_change_what_is_sent(viewer: Viewer) -> None:
    choose(viewer, "Leave out, %", 75)
    assert len(points(viewer, 0).points) == pytest.approx(3 * HEIGHT * WIDTH / 4, abs=2)
    before = points(viewer, 1).colors.copy()
    choose(viewer, "Colour", "difference")
    assert not np.array_equal(points(viewer, 1).colors, before)
    choose(viewer, "Layout", "side by side")
    frusta = [viewer.server.scene.get_handle_by_name(f"/cameras/{index}/0") for index in (0, 1)]
    assert points(viewer, 1).position[0] > points(viewer, 0).position[0] == 0
    assert frusta[1].position[0] == pytest.approx(points(viewer, 1).position[0])
    choose(viewer, "int8", False)
    assert not points(viewer, 1).visible
    assert not frusta[1].visible
    assert points(viewer, 0).visible
    size = points(viewer, 0).point_size
    choose(viewer, "Point size", 2.0)
    assert points(viewer, 0).point_size == pytest.approx(2 * size)


class Client:
    """Keeps what a browser is told."""

    def __init__(self) -> None:
        self.camera, self.files, self.notes = SimpleNamespace(), [], []

    def atomic(self) -> Any:
        return io.BytesIO()  # any context manager

    def add_notification(self, title: str, body: str, color: str) -> None:
        self.notes.append((title, body))

    def send_file_download(self, name: str, content: bytes, save_immediately: bool) -> None:
        self.files.append((name, content))


def test_a_camera_is_looked_from(viewer: Viewer) -> None:
    client = Client()
    choose(viewer, "Look from", "2: photo 2", client)
    assert client.camera.position == pytest.approx([0.4, 0, 0])
    assert client.camera.look_at[:2] == pytest.approx([0.4, 0])
    assert client.camera.look_at[2] == pytest.approx(2)  # orbiting turns around the wall
    assert client.camera.up_direction == pytest.approx([0, -1, 0])
    entered = viewer.server.scene.get_handle_by_name("/cameras/0/2")
    assert not entered.visible  # its image would hide the points
    twin = viewer.server.scene.get_handle_by_name("/cameras/1/2")
    assert not twin.visible  # as that of the other reconstruction would, which is at the same place
    (click,) = viewer.server.scene.get_handle_by_name("/cameras/1/0")._impl.click_cb
    click.callback(SimpleNamespace(client=client))
    assert client.camera.position == pytest.approx([0, 0, 0])
    assert entered.visible
    assert twin.visible
    choose(viewer, "Look from", OVERVIEW, client)
    assert client.camera.position[2] < client.camera.look_at[2] - 1
    assert entered.visible


def test_what_is_shown_is_downloaded(viewer: Viewer) -> None:
    choose(viewer, "Leave out, %", 50)
    choose(viewer, "fp16", False)
    client = Client()
    viewer.page._download(client)
    (name, content) = client.files.pop()
    shown = points(viewer, 1)
    assert name == "shown.ply"
    assert f"element vertex {len(shown.points)}\n".encode() in content
    assert shown.points[0].tobytes() in content

    control(viewer, "Format").value = "glb"
    viewer.page._download(client)
    (name, content) = client.files.pop()
    assert name == "scene.glb"
    assert content.startswith(b"glTF")

    choose(viewer, "fp16", True)
    control(viewer, "Format").value = "colmap"
    viewer.page._download(client)
    (name, content) = client.files.pop()
    assert name == "colmap.zip"
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = set(archive.namelist())
    assert {f"{folder}/sparse/0/points3D.bin" for folder in ("0_fp16", "1_int8")} <= names

    choose(viewer, "fp16", False)
    choose(viewer, "int8", False)
    viewer.page._download(client)
    assert not client.files
    assert client.notes == [("Not downloaded", "nothing is shown, so there is nothing to export")]


def test_the_page_is_on_this_machine_alone(viewer: Viewer) -> None:
    assert viewer.url.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(viewer.url, timeout=30) as page:
        assert b"<html" in page.read()
    assert viewer.server.request_share_url() is None
    port = viewer.server.get_port()
    with pytest.raises(ValueError, match=f"127.0.0.1:{port} cannot be listened on"):
        open_viewer([viewer.reconstructions[0].folder], port=port)
    with pytest.raises(ValueError, match=r"203\.0\.113\.1:\d+ cannot be listened on .*another host"):  # of no machine
        open_viewer([viewer.reconstructions[0].folder], host="203.0.113.1", port=0)
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        pass


def test_nothing_is_printed(saved: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    with open_viewer([saved("alone")], port=0) as opened:
        assert opened.page.work.wait(timeout=30)
    assert capfd.readouterr() == ("", "")


def test_one_reconstruction_has_no_comparison(saved: Callable[..., Path]) -> None:
    with open_viewer([saved("alone")], port=0) as opened:
        assert opened.page.work.wait(timeout=30)
        labels = {getattr(handle, "label", None) for handle in opened.server.gui._gui_input_handle_from_uuid.values()}
        assert "Layout" not in labels
        assert "reconstruction" not in control(opened, "Colour").options
