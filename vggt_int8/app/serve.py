"""Start and stop the page.

All uploads and results are in one temporary folder, which is deleted when this process ends.
"""

import os
import threading
from types import TracebackType
from typing import Any

from vggt_int8.address import check_address
from vggt_int8.app.expiring import ExpiringFolder
from vggt_int8.app.limits import Limits
from vggt_int8.app.models import Models

HOST, PORT = "127.0.0.1", 7860
LIMITS = Limits()
MISSING = (
    "the page needs gradio, which is not installed: `pip install 'vggt-int8[app]'` (with the versions that are tested: "
    "-c constraints-app.txt)"
)


class App:
    """A page that is served until `close` is called."""

    def __init__(self, blocks: Any, url: str, folder: ExpiringFolder) -> None:
        self.blocks, self.url, self.folder = blocks, url, folder
        self._ended = threading.Event()

    def wait(self, timeout: float | None = None) -> None:
        """Serve until `close` is called or the timeout is over."""
        self._ended.wait(timeout)

    def close(self) -> None:
        """Stop serving, and delete all uploads and results."""
        self.blocks.close(verbose=False)
        self.folder.close()
        self._ended.set()

    def __enter__(self) -> "App":
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.close()


def open_app(
    model: str = "embedded", *, host: str = HOST, port: int = PORT, limits: Limits = LIMITS, **options: Any
) -> App:
    """Serve a page that reconstructs images with `model` and its recipes.

    model: a folder, a file, a Hub id or "embedded".
    host: address to listen on: this machine only by default, the whole network with "0.0.0.0".
    port: 0 selects any free port.
    options: `backend`, `device_map` and `dtype` of `from_pretrained`.

    Raises ValueError without gradio (the extra `app`) and for an address that cannot be used, and `CheckpointError` for
    a model that is neither VGGT nor VGGT-Omega.
    """
    check_address(host, port)
    models = Models(model, **options)
    folder = ExpiringFolder("vggt-int8-app", limits.seconds)
    try:
        os.environ["GRADIO_TEMP_DIR"] = str(folder.path / "files")
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        try:
            from vggt_int8.app import page
        except ModuleNotFoundError as error:
            if error.name != "gradio":
                raise
            raise ValueError(MISSING) from error
        blocks = page.build(models, folder.path / "results", limits)
        url = page.launch(blocks, host, port, limits)
    except BaseException:
        folder.close()
        raise
    return App(blocks, url, folder)
