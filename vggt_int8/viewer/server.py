"""The one place that imports viser: a page on this machine that shows three-dimensional things in a browser.

viser as it comes listens on all interfaces, takes the next free port without a word, prints to stdout, and lets every
visitor ask for a tunnel through a server in the internet. Here it does none of that.
"""

import contextlib
import io
from typing import Any

MISSING = (
    "the viewer needs viser, which is not installed: `pip install 'vggt-int8[viewer]'` (with the versions that are "
    "tested: -c constraints-app.txt)"
)


def start_server(host: str, port: int, title: str) -> Any:
    """A `viser.ViserServer` that listens on `host`:`port`; 0 takes any free port, which `get_port()` tells.

    Raises ValueError without viser, and for a port that is taken; `check_address` says more, and before.
    """
    try:
        import viser
    except ModuleNotFoundError as error:
        if error.name != "viser":
            raise
        raise ValueError(MISSING) from error

    class Server(viser.ViserServer):
        """Without the tunnel, and without a word."""

        def request_share_url(self, verbose: bool = True) -> None:
            return None

        def stop(self) -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                super().stop()

    with contextlib.redirect_stdout(io.StringIO()):
        server = Server(host=host, port=port, label=title, verbose=False)
    if port and server.get_port() != port:  # taken in between
        server.stop()
        raise ValueError(f"port {port} on {host} is taken: choose another one, or 0 for any that is free")
    return server
