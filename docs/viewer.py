"""Draws docs/viewer.png: a bundled scene by the embedded model, fp16 beside INT8, in the viewer.

`python docs/viewer.py` in a clone, with the extra `viewer`, playwright and Chromium.
"""

import shutil
import tempfile
from pathlib import Path

import torch
from PIL import Image
from playwright.sync_api import sync_playwright

from vggt_int8 import VGGTInt8
from vggt_int8.images import ImageTransform
from vggt_int8.scene import Scene, save_scene
from vggt_int8.scenes import load_scene
from vggt_int8.viewer import Settings, open_viewer

RECIPES = ("fp16", "int8_dynamic")
SETTLED = 30_000  # milliseconds, after which also a CPU has drawn everything, and the page has faded in


def main() -> None:
    """Reconstruct, show, take the picture."""
    images = load_scene("room").images
    size = (images.shape[2], images.shape[3])
    transforms = [ImageTransform(size, size, (1.0, 1.0), (0, 0))] * len(images)
    names = [f"view {index}.png" for index in range(len(images))]
    with tempfile.TemporaryDirectory() as scratch:
        folders = []
        for recipe in RECIPES:
            folders.append(Path(scratch) / recipe)
            folders[-1].mkdir()
            model = VGGTInt8.from_pretrained("embedded", recipe=recipe).eval()
            with torch.inference_mode():
                save_scene(folders[-1] / "scene", Scene.from_prediction(model(images), transforms, names))
        settings = Settings(color="difference", layout="side by side")
        with open_viewer(folders, port=0, settings=settings) as viewer:
            viewer.page.work.wait()
            shot = Path(scratch) / "shot.png"
            take(viewer.url, shot)
        Image.open(shot).convert("RGB").save(Path(__file__).with_suffix(".png"), optimize=True)


def take(url: str, shot: Path) -> None:
    """What Chromium shows of the page."""
    browser_path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    options = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-sandbox"]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path, args=options)
        page = browser.new_page(viewport={"width": 1400, "height": 760})
        page.goto(url)
        page.wait_for_timeout(SETTLED)
        if page.get_by_text("Software WebGL").count():
            page.locator("button[class*=Notification-close]").first.click()
            page.wait_for_timeout(2000)
        page.screenshot(path=str(shot))
        browser.close()


if __name__ == "__main__":
    main()
