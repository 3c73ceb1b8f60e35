"""A local stand-in of the Hugging Face Hub that really takes an upload and serves it back.

It speaks the part of the Hub's HTTP protocol that `push_to_hub`, `upload_folder`, `snapshot_download` and
`from_pretrained` use: create, whoami, YAML validation, preupload, LFS batch with basic and multipart
transfer, verify, commit (ndjson), repository info, tree listing, file resolving with ranges and redirects.
Objects are kept in memory. Uploads are checked (size, sha256, known parts). A protocol error is answered with
4xx and remembered in `failures`, so a client that sends something wrong makes the test fail.

Only the standard library's `http.server` is used. LFS files are served through a redirect to another host
name of the same machine, as the Hub redirects to its storage. Xet is not spoken: clients need
`HF_HUB_DISABLE_XET=1`.
"""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

from tests.hub_standin.protocol import ROUTES, TOKEN, Hub, Request
from tests.hub_standin.repository import HubError


class HubServer(Hub):
    """A `Hub` that answers on a free loopback port: `with HubServer() as hub: hub.url`."""

    def __init__(self) -> None:
        super().__init__()
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.storage_url = f"http://localhost:{self.http.server_address[1]}"

    def __enter__(self) -> HubServer:
        # Who ends it waits for its next look, by default every half a second.
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()

    def environment(self, home: str) -> dict[str, str]:
        """Variables that make a client process use this server alone, with `home` as its empty cache."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": home,
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }


class Handler(BaseHTTPRequestHandler):
    """HTTP/1.1 around `ROUTES`: bodies of both kinds, tokens, ranges, errors as the Hub words them."""

    protocol_version = "HTTP/1.1"
    hub: HubServer

    def do_GET(self) -> None:
        request = Request(self.command, self.path, self.headers, self.read_body())
        with self.hub.lock:
            try:
                content = self.dispatch(request)
                status, payload = self.encode(request, content)
            except HubError as error:
                status, payload = self.refuse(request, error)
            except (KeyError, TypeError, ValueError) as error:  # a field is missing or of the wrong kind
                status, payload = self.refuse(request, HubError(400, f"Malformed request: {error!r}"))
            self.hub.log.append((request.method, request.path, status))
        self.send_response(status)
        for name, value in request.answer_headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(payload)

    do_HEAD = do_POST = do_PUT = do_GET

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def dispatch(self, request: Request) -> Any:
        method = "GET" if request.method == "HEAD" else request.method
        for wanted, pattern, name, needs_token in ROUTES:
            match = re.fullmatch(pattern, request.path)
            if match is None or wanted != method:
                continue
            groups = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
            private = groups.get("repo_id") in self.hub.repos and self.hub.repos[groups["repo_id"]].private
            if (needs_token or private) and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                raise HubError(401, "Invalid username or password.")
            return getattr(self.hub, name)(request, **groups)
        raise HubError(404, f"No such address: {request.method} {request.path}")

    def encode(self, request: Request, content: Any) -> tuple[int, bytes]:
        if "Location" in request.answer_headers:
            return 302, b""
        if not isinstance(content, bytes):
            request.answer_headers["Content-Type"] = "application/json; charset=utf-8"
            return 200, json.dumps(content).encode()
        request.answer_headers |= {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return 200, content
        start, stop = int(wanted[1]), min(int(wanted[2] or len(content)) + 1, len(content))
        if start >= len(content):
            raise HubError(416, f"Range {wanted[0]} of {len(content)} bytes")
        request.answer_headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        return 206, content[start:stop]

    def refuse(self, request: Request, error: HubError) -> tuple[int, bytes]:
        if not error.expected:
            self.hub.failures.append(f"{request.method} {request.path}: {error.status} {error}")
        if error.code:
            request.answer_headers["X-Error-Code"] = error.code
        request.answer_headers["X-Error-Message"] = re.sub(r"[^ -~]", " ", str(error))
        request.answer_headers["Content-Type"] = "application/json; charset=utf-8"
        return error.status, json.dumps(error.body).encode()

    def log_message(self, *_: Any) -> None:
        """Requests are kept in `HubServer.log`, not printed."""
