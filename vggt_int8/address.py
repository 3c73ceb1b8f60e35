"""Addresses that pages are served at: checks early whether one can be listened on."""

import errno
import socket


def check_address(host: str, port: int) -> None:
    """Raise ValueError, naming host and port, if nothing can listen there; port 0 means any."""
    _listened_on(host, port)


def free_port(host: str) -> int:
    """A port that is currently free."""
    return _listened_on(host, 0)


def page_address(host: str, port: int) -> str:
    """The URL for a browser on this machine, or on another one if the server listens on all addresses."""
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
    """What to change about an address."""
    if error.errno == errno.EADDRNOTAVAIL:
        return "host: 127.0.0.1 for this machine alone, 0.0.0.0 for all of its addresses"
    return "port, or 0 for any"
