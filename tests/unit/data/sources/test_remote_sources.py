"""Object stores: moto's S3 server, and a server that answers like Google's store and the Hugging Face Hub."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.server
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

pytest.importorskip("fsspec")

import mae.data.sources.remote
from mae.data.sources.remote import RemoteError
from mae.data.sources.scan import scan_images
from mae.errors import ConfigError
from mae.training.pretrain import pretrain
from tests.processes import end_all, start_python
from tests.unit.data.sources.test_base import CONTENT, contents, write_parquet, write_tar
from tests.unit.data.sources.test_remote import FAULT_SEEDS
from tests.unit.training.small import make_models_small, same, small_config, weights

START_SECONDS = 60.0


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    for package in ("s3fs", "botocore", "moto.server"):
        pytest.importorskip(package)
    monkeypatch.setattr("mae.data.sources.remote.BUFFER_BYTES", 100)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    server = start_python(
        "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "key-of-the-test",
        "AWS_SECRET_ACCESS_KEY": "secret-of-the-test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "MAECLI_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    end = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            break
        assert server.poll() is None
        assert time.monotonic() < end
        time.sleep(0.1)
    from botocore.session import get_session

    client = get_session().create_client("s3")
    client.create_bucket(Bucket="photos")
    yield client
    end_all()


def test_shards_in_a_bucket(bucket: object, tmp_path: Path) -> None:
    names = sorted(CONTENT)
    for number in range(2):
        data = write_tar(tmp_path / "x.tar", {name: CONTENT[name] for name in names[number::2]}).read_bytes()
        bucket.put_object(Bucket="photos", Key=f"train-{number}.tar", Body=data)  # type: ignore[attr-defined]
    scan = scan_images([Path("s3://photos/train-{0..1}.tar")])
    assert sorted(contents(scan.images)) == sorted(CONTENT.values())
    kept = b"".join(path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert b"secret-of-the-test" not in kept
    bucket.put_object(Bucket="photos", Key="train-0.tar", Body=b"x" * 10_240)  # type: ignore[attr-defined]
    for path in (tmp_path / "cache" / "blocks").glob("*/0*"):
        path.unlink()
    with pytest.raises(RemoteError, match=r"s3://photos/train-0\.tar has changed"):
        contents(scan.images)
    with pytest.raises(RemoteError, match=r"s3://photos/none\.tar cannot be read: there is no such object"):
        scan_images([Path("s3://photos/none.tar")])


class Faulty:
    """moto's WSGI application; the next answers fail as ``faults`` say, and those to HEAD as ``info_faults`` say."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.faults: list[str] = []
        self.info_faults: list[str] = []

    def __call__(self, environ: Any, start_response: Any) -> Any:
        faults = self.info_faults if environ["REQUEST_METHOD"] == "HEAD" else self.faults
        fault = faults.pop(0) if faults and environ["REQUEST_METHOD"] in ("HEAD", "GET") else ""
        if fault.isdigit():
            start_response(f"{fault} fault", [("Content-Length", "0")])
            return [b""]
        if fault == "drop":
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        if fault not in ("short", "break"):
            return self.app(environ, start_response)
        answered: list[Any] = []
        body = b"".join(self.app(environ, lambda *answer: answered.append(answer)))
        status, headers, *_ = answered[0]
        part = body[: len(body) // 2]
        if fault == "short":
            headers = [(name, str(len(part)) if name.lower() == "content-length" else value) for name, value in headers]
        start_response(status, headers)
        return self.broken(part) if fault == "break" else [part]

    @staticmethod
    def broken(part: bytes) -> Iterator[bytes]:
        yield part
        raise ConnectionAbortedError


def random_faults(seed: int, share: float) -> list[list[str]]:
    """Faults of answers to GET and to HEAD."""
    rng = np.random.default_rng(seed)
    kinds = ["503", "500", "429", "drop"]
    return [
        [str(rng.choice(these)) if rng.random() < share else "" for _ in range(600)]
        for these in ([*kinds, "break", "short"], kinds)
    ]


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    """Moto's S3 server in a thread, with a bucket of two tar files and a Parquet file."""
    for package in ("s3fs", "moto.server", "pyarrow"):
        pytest.importorskip(package)
    from botocore.session import get_session
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    app = Faulty(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    monkeypatch.setattr("werkzeug.serving.WSGIRequestHandler.log", lambda *_: None)
    monkeypatch.setattr(server, "handle_error", lambda *_: None)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    settings = {"ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}", "DEFAULT_REGION": "us-east-1"}
    for name, value in (settings | {"ACCESS_KEY_ID": "any", "SECRET_ACCESS_KEY": "any"}).items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("MAECLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mae.data.sources.remote, "FIRST_PAUSE", 0.0)
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)  # beside our own attempts, with pauses
    monkeypatch.setattr("botocore.retryhandler.delay_exponential", lambda **_: 0.0)
    monkeypatch.setattr(mae.data.sources.remote, "BLOCK_BYTES", 4000)
    monkeypatch.setattr(mae.data.sources.remote, "BUFFER_BYTES", 100)
    client = get_session().create_client("s3")
    client.create_bucket(Bucket="photos")
    names = sorted(CONTENT)
    for number in range(3):
        part = {name: CONTENT[name] for name in names[number::3]}
        path = write_tar(tmp_path / "x", part) if number else write_parquet(tmp_path / "x", part, rows=2)
        client.put_object(
            Bucket="photos", Key=f"part-{number}.{'tar' if number else 'parquet'}", Body=path.read_bytes()
        )
    yield app
    server.shutdown()
    thread.join()
    server.server_close()


def test_random_faults_of_a_store_change_no_weight(
    faulty: Faulty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run ends with the weights of a run without faults, or with an error that names the object."""
    make_models_small(monkeypatch)
    urls = (Path("s3://photos/part-{1..2}.tar"), Path("s3://photos/part-0.parquet"))
    config = dataclasses.replace(small_config(tmp_path, tmp_path / "whole"), data=urls, epochs=1)
    pretrain(config)
    for seed in FAULT_SEEDS:
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        share = 0.9 if seed % 2 else 0.15
        faulty.faults, faulty.info_faults = random_faults(seed, share)
        run = dataclasses.replace(config, out=tmp_path / f"faulty-{seed}", workers=1 if seed % 4 == 0 else 0)
        failure = ""
        try:
            pretrain(run)
        except RemoteError as error:
            failure = error.message
        assert len(faulty.faults) + len(faulty.info_faults) < 1200
        faulty.faults, faulty.info_faults = [], []
        if failure:
            assert re.match(r"s3://photos/part-([12]\.tar|0\.parquet) cannot be read: ", failure)
        else:
            assert same(weights(config.out), weights(run.out))
        assert bool(failure) == (share > 0.5)


class Store(http.server.BaseHTTPRequestHandler):
    """Answers the requests of gcsfs and huggingface_hub: an object's metadata, and byte ranges."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]
    version: int
    ranges: list[tuple[str, int, int]]

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        name = path.rpartition("/")[2]
        data = self.files.get(name)
        tag = hashlib.sha1(f"{name} {self.version}".encode()).hexdigest()
        if path.startswith(("/download/storage/v1/b/photos/o/", "/datasets/me/photos/resolve/main/")):
            self.answer_range(name, data)
        elif path.startswith("/storage/v1/b/photos/o/") and data is not None:
            about = {"name": name, "bucket": "photos", "size": f"{len(data)}", "generation": f"{self.version}"}
            self.answer(about | {"updated": "2026-01-01T00:00:00Z", "timeCreated": "2026-01-01T00:00:00Z"})
        elif path == "/storage/v1/b/photos/o":
            self.answer({"items": []})
        elif path == "/api/datasets/me/photos":
            self.answer({"id": "me/photos", "sha": "a" * 40, "private": False, "tags": [], "downloads": 0, "likes": 0})
        elif path == "/api/datasets/me/photos/tree/main":
            self.answer([{"type": "file", "oid": tag, "size": len(self.files[one]), "path": one} for one in self.files])
        else:
            self.answer({"error": {"code": 404, "message": "Not Found"}}, 404)

    def answer(self, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer_range(self, name: str, data: bytes | None) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        assert wanted is not None
        assert data is not None
        start, end = int(wanted[1]), int(wanted[2]) + 1
        self.ranges.append((name, start, end))
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        self.wfile.write(data[start:end])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Store]]:
    monkeypatch.setenv("MAECLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MAECLI_OFFLINE", raising=False)
    monkeypatch.setattr(mae.data.sources.remote, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(mae.data.sources.remote, "BUFFER_BYTES", 100)
    names = sorted(CONTENT)
    Store.files = {
        f"train-{number}.tar": write_tar(
            tmp_path / "x", {name: CONTENT[name] for name in names[number::2]}
        ).read_bytes()
        for number in range(2)
    }
    Store.version, Store.ranges = 1, []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Store) as server:
        server.daemon_threads = True
        monkeypatch.setattr(server, "handle_error", lambda *_: None)  # a client that goes away
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        with contextlib.suppress(ImportError):
            monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
            template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
            monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield Store
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("package", "place"), [("gcsfs", "gs://photos"), ("huggingface_hub", "hf://datasets/me/photos")]
)
def test_other_stores_are_read_by_ranges_and_watched(
    package: str, place: str, store: type[Store], tmp_path: Path
) -> None:
    pytest.importorskip(package)
    scan = scan_images([Path(f"{place}/train-{{0..1}}.tar")])
    assert sorted(contents(scan.images)) == sorted(CONTENT.values())
    for name, start, end in store.ranges:  # blocks and nothing beside them
        assert start % 1000 == 0
        assert end == min(start + 1000, len(store.files[name]))
    assert len(set(store.ranges)) == len(store.ranges) > 20
    asked = len(store.ranges)
    assert len(scan_images([Path(f"{place}/train-{{0..1}}.tar")]).images) == len(CONTENT)
    assert len(store.ranges) == asked
    with pytest.raises(RemoteError, match=rf"{place}/none\.tar cannot be read: there is no such object"):
        scan_images([Path(f"{place}/none.tar")])
    store.version = 2  # of the same size
    for path in (tmp_path / "cache" / "blocks").glob("*/0*"):
        path.unlink()
    with pytest.raises(RemoteError, match=rf"{place}/train-[01]\.tar has changed"):
        contents(scan.images)


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for scheme, package, command in (
        ("gs", "gcsfs", "pip install 'maecli[remote]' gcsfs"),
        ("hf", "huggingface_hub", "pip install 'maecli[remote]'"),
        ("s3", "s3fs", "pip install 'maecli[remote]'"),
    ):
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, scheme, raising=False)
        with pytest.raises(
            ConfigError, match=rf"{scheme}://x/y/z\.tar: reading {scheme}:// needs another package"
        ) as caught:
            scan_images([Path(f"{scheme}://x/y/z.tar")])
        assert caught.value.hint == command
        assert package in caught.value.message
