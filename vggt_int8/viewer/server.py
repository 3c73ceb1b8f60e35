"""The only module that imports viser: serves a page with 3D content on this machine.

By default viser listens on all interfaces, silently takes the next free port, prints to stdout, and lets every client
request a tunnel through a public server. All of this is disabled here.
"""

import contextlib
import io
from typing import Any

MISSING = (
    "the viewer needs viser, which is not installed: `pip install 'vggt-int8[viewer]'` (with the versions that are "
    "tested: -c constraints-app.txt)"
)


def start_server(host: str, port: int, title: str) -> Any:
    """A `viser.ViserServer` that listens on `host`:`port`. 0 selects any free port, which `get_port()` returns.

    Raises ValueError without viser, and for a port in use; `check_address` gives a better message in advance.
    """
    try:
        import viser
    except ModuleNotFoundError as error:
        if error.name != "viser":
            raise
        raise ValueError(MISSING) from error

    class Server(viser.ViserServer):
        """Without the tunnel and without output."""

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
