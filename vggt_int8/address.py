"""Addresses of this machine that pages are served at: whether one can be listened on, said in time."""

import errno
import socket


def check_address(host: str, port: int) -> None:
    """Raise ValueError, which names host and port, where nothing can be listened on there; port 0 means any."""
    _listened_on(host, port)


def free_port(host: str) -> int:
    """A port that nobody listens on now."""
    return _listened_on(host, 0)


def page_address(host: str, port: int) -> str:
    """What to type into a browser, on this machine or, where all of its addresses are listened on, on another."""
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _listened_on(host: str, port: int) -> int:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise ValueError(f"host {host!r} is no address of this machine ({error})") from error
    with socket.socket(family, kind, protocol) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(address)
        except OSError as error:
            raise ValueError(
                f"{host}:{port} cannot be listened on ({error.strerror}): choose another {_wrong(error)}"
            ) from error
        return int(trial.getsockname()[1])


def _wrong(error: OSError) -> str:
    """What of an address to change."""
    if error.errno == errno.EADDRNOTAVAIL:
        return "host: 127.0.0.1 for this machine alone, 0.0.0.0 for all of its addresses"
    return "port, or 0 for any"
