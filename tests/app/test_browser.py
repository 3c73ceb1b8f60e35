"""The page in a browser, as a visitor uses it: upload, run, look, download; nothing comes from another machine."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.browser import eventually, page_of, picture_of
from vggt_int8.app import open_app
from vggt_int8.scenes import load_scene

pytest.importorskip("gradio", reason="the page needs the extra app (constraints-app.txt)")


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Three views of a room."""
    found = []
    for index, image in enumerate(load_scene("room").images[:3]):
        found.append(tmp_path / f"view {index}.png")
        Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy()).save(found[-1])
    return found


@pytest.mark.slow
def test_upload_run_look_download(
    photos: list[Path],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    record_property: Callable[[str, object], None],
) -> None:
    with open_app(port=0) as app, page_of(app.url, (1280, 1500)) as page:
        page.get_by_role("button", name="Reconstruct").click()
        page.get_by_text("no images yet").wait_for(timeout=60_000)
        page.locator("input[type=file]").first.set_input_files(photos)
        page.locator("a[download='view 2.png']").wait_for(timeout=60_000)  # it has arrived
        page.get_by_role("button", name="Reconstruct").click()
        page.get_by_text("rotation", exact=True).wait_for(timeout=180_000)
        assert eventually(lambda: page.get_by_text("view 1.png").count() >= 4)  # depth and camera, twice

        stages = page.locator("canvas")

        def drawn() -> bool:
            """Both canvases show colours of the room: neither empty nor of one colour."""
            picture = picture_of(page)
            for number in range(2):
                box = stages.nth(number).bounding_box()
                if box is None:
                    return False
                left, top, width, height = (round(box[key]) for key in ("x", "y", "width", "height"))
                patch = picture[top : top + height, left : left + width].astype(int)
                if len(np.unique(patch.reshape(-1, 3) // 32, axis=0)) < 8:
                    return False
            return True

        shown = eventually(lambda: stages.count() == 2 and drawn(), 120)
        shot = tmp_path_factory.mktemp("screenshots") / "app.png"
        page.screenshot(path=str(shot))
        record_property("screenshot", str(shot))
        assert shown, f"points are not drawn, see {shot}"

        for number, (format, name) in enumerate((("ply", "points.ply"), ("colmap", "colmap.zip"))):
            column = page.get_by_label("Format").nth(number)
            column.click()
            page.get_by_role("option", name=format, exact=True).click()
            page.get_by_role("button", name="Prepare the download").nth(number).click()
            link = page.locator(f"a[download='{name}']").first
            link.wait_for(timeout=120_000)
            with page.expect_download(timeout=60_000) as download:
                link.click()
            download.value.save_as(tmp_path / name)
        assert (tmp_path / "points.ply").read_bytes().startswith(b"ply\n")
        with zipfile.ZipFile(tmp_path / "colmap.zip") as archive:
            names = set(archive.namelist())
        assert {"sparse/0/cameras.bin", "sparse/0/points3D.bin", "images/view 0.png"} <= names
