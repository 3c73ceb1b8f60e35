"""Load folders, start the server, draw the page, and shut everything down."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from vggt_int8.address import check_address, page_address
from vggt_int8.export.selection import PointSource
from vggt_int8.viewer.cloud import KEPT_PER_SHOWN
from vggt_int8.viewer.page import Page
from vggt_int8.viewer.reconstruction import Reconstruction, load_reconstructions
from vggt_int8.viewer.server import start_server
from vggt_int8.viewer.settings import Settings

HOST, PORT = "127.0.0.1", 8080


@dataclass(frozen=True)
class Viewer:
    """A page that is served until `close` is called."""

    url: str
    server: Any  # viser.ViserServer
    page: Page

    @property
    def reconstructions(self) -> list[Reconstruction]:
        return self.page.stage.reconstructions

    def wait(self, timeout: float | None = None) -> None:
        """Serve until the page raises an error, which is raised here, or until the timeout."""
        self.page.work.wait_for_error(timeout)

    def close(self) -> None:
        self.page.close()
        self.server.stop()

    def __enter__(self) -> "Viewer":
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.close()


def open_viewer(
    folders: Sequence[Path],
    *,
    host: str = HOST,
    port: int = PORT,
    points: PointSource | None = None,
    settings: Settings = Settings(),  # noqa: B008 - frozen
) -> Viewer:
    """Serve scenes saved by `vggt-int8 run` in these folders. Needs neither the model nor a network connection.

    host: address to listen on: this machine only by default, the whole network with "0.0.0.0".
    port: 0 selects any free port.
    points: "depth", "world_points" or None for what is available.
    settings: initial settings of the page.

    Raises ValueError without viser (the extra `viewer`), for a scene without points, for settings that do not fit and
    for an address that cannot be used, and the errors of `load_scene`.
    """
    if not folders:
        raise ValueError("there is no folder to show")
    settings.check(len(folders))
    check_address(host, port)
    reconstructions = load_reconstructions(folders, points=points, most=KEPT_PER_SHOWN * settings.most_points)
    server = start_server(host, port, "vggt-int8")
    try:
        page = Page(server, reconstructions, settings)
    except BaseException:
        server.stop()
        raise
    return Viewer(page_address(host, server.get_port()), server, page)
