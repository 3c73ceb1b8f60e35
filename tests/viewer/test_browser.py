"""The viewer in a browser: points are drawn where the camera saw them, in their colours; controls reach the server."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.browser import eventually, page_of, picture_of
from tests.viewer.conftest import HEIGHT, WIDTH, MakeScene
from vggt_int8.export import save_scene
from vggt_int8.viewer import Settings, open_viewer

pytest.importorskip("viser", reason="the viewer needs the extra viewer (constraints-app.txt)")

QUARTERS = {
    "upper left": (220, 40, 30),
    "upper right": (40, 160, 60),
    "lower left": (30, 60, 200),
    "lower right": (128,) * 3,
}


@pytest.fixture
def folders(tmp_path: Path, wall: MakeScene) -> list[Path]:
    """Three reconstructions, the first of one image, whose images have four quarters of different colours."""
    colors = torch.zeros(3, HEIGHT, WIDTH, 3, dtype=torch.uint8)
    for quarter, color in QUARTERS.items():
        rows = slice(0, HEIGHT // 2) if "upper" in quarter else slice(HEIGHT // 2, HEIGHT)
        columns = slice(0, WIDTH // 2) if "left" in quarter else slice(WIDTH // 2, WIDTH)
        colors[:, rows, columns] = torch.tensor(color, dtype=torch.uint8)
    found = []
    for name, count, noise in (("alone", 1, 0.0), ("fp16", 3, 0.0), ("int8", 3, 0.02)):
        (tmp_path / name).mkdir()
        save_scene(tmp_path / name / "scene", replace(wall(count=count, noise=noise), colors=colors[:count]))
        found.append(tmp_path / name)
    return found


def choose(page: Any, label: str, option: str) -> None:
    page.get_by_label(label).first.click()
    page.get_by_role("option", name=option).first.click()


def seen(page: Any) -> dict[str, tuple[int, ...]]:
    """The median colour in the middle of each quarter of the stage's central square."""
    stage = page.locator("canvas").first.bounding_box()
    left, top, width, height = (round(stage[key]) for key in ("x", "y", "width", "height"))
    picture = picture_of(page)
    found = {}
    for quarter in QUARTERS:
        row = top + height // 2 + (-1 if "upper" in quarter else 1) * height // 5
        column = left + width // 2 + (-1 if "left" in quarter else 1) * height // 5
        patch = picture[row - 8 : row + 8, column - 8 : column + 8].reshape(-1, 3)
        found[quarter] = tuple(np.median(patch, axis=0).astype(int).tolist())
    return found


@pytest.mark.slow
def test_from_a_camera_the_points_look_as_its_image(
    folders: list[Path], tmp_path_factory: pytest.TempPathFactory, record_property: Callable[[str, object], None]
) -> None:
    with (
        open_viewer(folders[:1], port=0, settings=Settings(percentile=0)) as viewer,
        page_of(viewer.url) as page,
    ):
        choose(page, "Look from", "0: photo 0")

        def as_the_image() -> bool:
            found = seen(page)
            return all(np.abs(np.subtract(found[name], color)).max() <= 3 for name, color in QUARTERS.items())

        same = eventually(as_the_image)
        shot = tmp_path_factory.mktemp("screenshots") / "viewer.png"
        page.screenshot(path=str(shot))
        record_property("screenshot", str(shot))
        assert same, f"seen {seen(page)} instead of {QUARTERS}; see {shot}"


@pytest.mark.slow
def test_a_visitor_compares_and_downloads(folders: list[Path], tmp_path: Path) -> None:
    with open_viewer(folders[1:], port=0) as viewer, page_of(viewer.url) as page:
        page.get_by_text("times 1.00").wait_for(timeout=60_000)  # the comparison is told
        choose(page, "Colour", "difference")
        assert eventually(lambda: viewer.page.settings.color == "difference")
        choose(page, "Layout", "side by side")
        page.get_by_text("distance from fp16").wait_for(timeout=60_000)
        with page.expect_download(timeout=60_000) as download:
            page.get_by_role("button", name="Download", exact=True).click()
        download.value.save_as(tmp_path / "got.ply")
        header = (tmp_path / "got.ply").read_bytes()[:200]
        assert header.startswith(b"ply\n")
        shown = sum(int(one.cloud.passing(25).sum()) for one in viewer.reconstructions)
        assert f"element vertex {shown}\n".encode() in header
        assert viewer.page.work.error is None
