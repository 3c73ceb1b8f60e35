"""A headless Chromium, by playwright, for tests of pages: without a GPU and without a way to any other machine.

Both are looked for, not installed: `pip install playwright` and the distribution's package `chromium`.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any
from urllib.parse import urlparse

import numpy as np
import pytest
from PIL import Image

LOCAL = {"127.0.0.1", "localhost", None}  # None: blob: and data:
_OPTIONS = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-sandbox"]


@contextmanager
def page_of(url: str, size: tuple[int, int] = (1100, 800)) -> Iterator[Any]:
    """A playwright page that shows `url`, of (width, height) pixels.

    Skips without a browser. Fails if the page raised an error, or asked for anything of another machine.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="pages are tested by playwright")
    browser_path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser_path is None:
        pytest.skip("pages are tested in Chromium, which is not installed")
    asked: list[str] = []
    errors: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path, args=_OPTIONS)
        page = browser.new_page(viewport={"width": size[0], "height": size[1]}, accept_downloads=True)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        yield page
        browser.close()
    assert errors == []
    assert [url for url in asked if urlparse(url.removeprefix("blob:")).hostname not in LOCAL] == []


def picture_of(page: Any) -> np.ndarray:
    """[H, W, 3] uint8: what is seen now."""
    return np.asarray(Image.open(BytesIO(page.screenshot())).convert("RGB"))


def eventually(condition: Callable[[], bool], seconds: float = 60) -> bool:
    """Whether it comes true in that time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.3)
    return True
