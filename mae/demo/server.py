"""The HTTP server of the demo page: it listens on 127.0.0.1 only and answers only the page's own requests."""

from __future__ import annotations

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from mae.demo.session import DemoSession
from mae.errors import ConfigError, DataError, MaeError

HOST = "127.0.0.1"
LARGEST_BODY = 64 * 2**20  # bytes
_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)


class DemoServer(ThreadingHTTPServer):
    """Serves the page of a session on 127.0.0.1.

    Args:
        port: Port to listen on; 0 for a free one.

    Attributes:
        session: The session that computes answers; must be set before the first request.

    Raises:
        ConfigError: The port is not available.
    """

    daemon_threads = True

    session: DemoSession

    def __init__(self, port: int) -> None:
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise ConfigError(f"--port {port}: {error.strerror}", hint="--port 0 chooses a free port") from None

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://{HOST}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors of a connection that the browser closed."""


class _Handler(BaseHTTPRequestHandler):
    server: DemoServer

    def do_GET(self) -> None:
        """Serve the page's files and the description of the model."""
        path = urlsplit(self.path).path
        if not self._is_ours():
            self._refuse()
        elif path in _FILES:
            name, kind = _FILES[path]
            self._send(200, Path(__file__).with_name(name).read_bytes(), kind)
        elif path == "/model":
            self._answer(200, self.server.session.describe())
        else:
            self._answer(404, {"error": "no such page"})

    def do_POST(self) -> None:
        """Answer a request of the page: add an image, reconstruct it, or find similar images."""
        session, address = self.server.session, urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(address.query).items()}
        answers: dict[str, Callable[[bytes], Any]] = {
            "/image": lambda body: session.add(body, _number(query.get("seed"))),
            "/order": lambda body: session.order(_count(query.get("patches")), _number(query.get("seed"))),
            "/reconstruct": lambda body: session.reconstruct(*_wanted(body)),
            "/similar": lambda body: session.similar(_number(query.get("image"))),
        }
        length = self.headers.get("Content-Length", "")
        self.close_connection = True
        if not self._is_ours():
            self._refuse()
        elif address.path not in answers:
            self._answer(404, {"error": "no such page"})
        elif not length.isdecimal() or len(length) > 10 or int(length) > LARGEST_BODY:
            self._answer(413, {"error": f"a request may have at most {LARGEST_BODY // 2**20} MiB"})
        else:
            try:
                self._answer(200, answers[address.path](self.rfile.read(int(length))))
            except MaeError as error:
                self._answer(400, {"error": error.message})
            except (RuntimeError, MemoryError) as error:  # for instance out of memory: the page shows it
                self._answer(500, {"error": f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"})

    def _refuse(self) -> None:
        message = f"only the page at {self.server.url} may send requests (a forwarded port must have the same number)"
        self._answer(403, {"error": message})

    def _is_ours(self) -> bool:
        """Whether the page itself sent the request, and not another site in the same browser (CSRF, DNS rebinding)."""
        port = self.server.server_port
        hosts = {f"{name}:{port}" for name in (HOST, "localhost")}
        hosts |= {HOST, "localhost"} if port == 80 else set()  # browsers omit the default port
        origin = self.headers.get("Origin")
        return self.headers.get("Host") in hosts and (origin is None or origin in {f"http://{host}" for host in hosts})

    def _answer(self, status: int, document: Any) -> None:
        self._send(status, json.dumps(document, allow_nan=False).encode(), "application/json")

    def _send(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Print nothing, since the terminal shows the command's output."""


def _number(text: str | None, largest: int = 2**31) -> int:
    if text is None or not text.isdecimal() or len(text) > 10 or int(text) > largest:
        raise DataError(f"wanted a whole number from 0 to {largest}")
    return int(text)


def _count(text: str | None) -> int:
    return _number(text, 2**16)


def _wanted(body: bytes) -> tuple[int, list[int]]:
    """Parse an image's number and its masked patches from a request."""
    try:
        document = json.loads(body)
        number, masked = document["image"], document["masked"]
        if type(number) is int and isinstance(masked, list) and all(type(patch) is int for patch in masked):
            return number, masked
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise DataError('wanted {"image": a number, "masked": numbers of patches}')
