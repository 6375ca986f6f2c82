"""The server answers only its own page, and survives any request."""

from __future__ import annotations

import http.client
import io
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mae.demo.config import DemoConfig
from mae.demo.server import LARGEST_BODY, DemoServer
from mae.demo.session import DemoSession
from mae.errors import ConfigError
from tests.unit.checkpoints.small_builtin import write_builtin


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoServer]:
    weights = tmp_path_factory.mktemp("weights")
    write_builtin(weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAECLI_BUILTIN", str(weights))
        session = DemoSession(DemoConfig(checkpoint=Path("builtin"), device="cpu"))
    with DemoServer(0) as server:
        server.session = session
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server: DemoServer, address: str, body: bytes | None = None, **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    try:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("GET" if body is None else "POST", address, body, names)
        answer = connection.getresponse()
        content = answer.read()
        assert "default-src 'none'" in (answer.getheader("Content-Security-Policy") or "")
        kind = answer.getheader("Content-Type")
        return answer.status, json.loads(content) if kind == "application/json" else content.decode()
    finally:
        connection.close()


def image() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((48, 32), 90).convert("RGB").save(file, "PNG")
    return file.getvalue()


def test_the_page_asks_and_is_answered(server: DemoServer) -> None:
    for address in ("/", "/page.js", "/page.css"):
        status, text = ask(server, address)
        assert status == 200
        assert "http" not in text  # nothing from elsewhere
    assert ask(server, "/model")[1]["mask_ratio"] == 0.75
    status, given = ask(server, "/image?seed=2", image(), Origin=server.url.rstrip("/"))
    assert status == 200
    assert sorted(given["order"]) == list(range(given["rows"] * given["columns"]))
    body = json.dumps({"image": given["image"], "masked": given["order"][3:]}).encode()
    status, found = ask(server, "/reconstruct", body)
    assert status == 200
    assert 0 < found["psnr"] < 60
    assert ask(server, f"/order?patches={len(given['order'])}&seed=2", b"") == (200, given["order"])
    assert ask(server, f"/similar?image={given['image']}", b"") == (200, [])


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example:80"},
        {"Host": "127.0.0.1"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
    ],
)
def test_other_sites_are_refused(server: DemoServer, headers: dict[str, str]) -> None:
    assert ask(server, "/", **headers)[0] == 403
    assert ask(server, "/image?seed=2", image(), **headers)[0] == 403


@pytest.mark.parametrize(
    ("address", "body"),
    [
        ("/image?seed=2", b"no image"),
        ("/image", b""),
        ("/image?seed=-1", image()),
        ("/image?seed=99999999999999999999", image()),
        ("/order?patches=1000000&seed=0", b""),
        ("/reconstruct", b"{}"),
        ("/reconstruct", b"[" * 100_000),
        ("/reconstruct", b'{"image": true, "masked": []}'),
        ("/reconstruct", b'{"image": 1, "masked": ["a"]}'),
        ("/reconstruct", b'{"image": 12345, "masked": []}'),
        ("/similar?image=x", b""),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_reason(server: DemoServer, address: str, body: bytes) -> None:
    status, answer = ask(server, address, body)
    assert status == 400
    assert answer["error"]


def test_nothing_else_is_served(server: DemoServer) -> None:
    for address in ("/session.py", "/../session.py", "/page.html%00", "//etc/passwd"):
        assert ask(server, address)[0] == 404
    assert ask(server, "/elsewhere", b"")[0] == 404
    assert ask(server, "/image?seed=2", b"", Content_Length=str(LARGEST_BODY + 1))[0] == 413
    assert ask(server, "/image?seed=2", b"", Content_Length="9" * 5000)[0] == 413


def test_the_usual_port_has_no_number(server: DemoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    host = {"Host": "127.0.0.1", "Origin": "http://127.0.0.1"}
    assert ask(server, "/model", **host)[0] == 403
    port = server.server_port
    monkeypatch.setattr(server, "server_port", 80)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", "/model", None, host)
    assert connection.getresponse().status == 200


def test_a_full_memory_is_told_and_the_page_goes_on(server: DemoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(body: bytes, seed: int) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(server.session, "add", full)
        assert ask(server, "/image?seed=2", image()) == (500, {"error": "MemoryError: "})
    assert ask(server, "/image?seed=2", image())[0] == 200


def test_only_this_machine_is_listened_to(server: DemoServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match=r"^--port \d+: "):
            DemoServer(taken.getsockname()[1])
