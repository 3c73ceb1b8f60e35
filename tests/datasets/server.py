"""A local HTTP server for downloads, with the faults that real ones have."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Faults:
    """What goes wrong: breaks: an answer ends after so many bytes, once for each number. ranges: False ignores them.
    etags: how versions are named; "changing" gives another at every answer. extra: bytes behind a range. stall: seconds
    that a connection which breaks stays open. packed: what an answer says of its encoding.
    """

    breaks: list[int] = field(default_factory=list)
    ranges: bool = True
    etags: str = "strong"
    statuses: list[int] = field(default_factory=list)  # of the first answers
    length: bool = True
    if_range: bool = True  # False sends the rest of whatever version there is
    redirects: dict[str, str] = field(default_factory=dict)  # path -> where to
    shift: int = 0  # bytes by which a range begins elsewhere than asked
    extra: int = 0
    stall: float = 0
    packed: str = ""
    asked: list[str] = field(default_factory=list)  # ranges, as they came


@contextmanager
def serve(folder: Path, faults: Faults) -> Iterator[str]:
    """The address below which the files of `folder` are."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            asked = self.headers.get("Range", "")
            faults.asked.append(asked)
            path = folder / self.path.lstrip("/")
            if self.path in faults.redirects:
                self.send_response(302)
                self.send_header("Location", faults.redirects[self.path])
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if faults.statuses or not path.is_file():
                self.send_response(faults.statuses.pop(0) if faults.statuses else 404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            content, tag = path.read_bytes(), self._tag(path)
            fits = not faults.if_range or self.headers.get("If-Range") in (None, tag)
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and faults.ranges and fits else None
            if start is not None and start >= len(content):
                self.send_response(416)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200 if start is None else 206)
            if faults.etags:
                self.send_header("ETag", tag)
            first, extra = (0, 0) if start is None else (start + faults.shift, faults.extra)
            if start is not None:
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            if faults.length:
                self.send_header("Content-Length", str(len(content) - first + extra))
            if faults.packed:
                self.send_header("Content-Encoding", faults.packed)
            self.send_header("Connection", "close")
            self.end_headers()
            body = content[first:] + bytes(extra)
            whole = len(body)
            if faults.breaks:
                body = body[: faults.breaks.pop(0)]
            self.wfile.write(body)
            time.sleep(faults.stall if len(body) < whole else 0)
            self.close_connection = True

        def _tag(self, path: Path) -> str:
            if faults.etags == "changing":
                return f'"{len(faults.asked)}"'
            return f'{"W/" if faults.etags == "weak" else ""}"{path.stat().st_mtime_ns}"'

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
