"""The same from a real object store: moto's server, which speaks S3."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("s3fs")
pytest.importorskip("botocore")
pytest.importorskip("moto.server")

from mae.data.sources.remote import RemoteError
from mae.data.sources.scan import scan_images
from tests.processes import end_all, start_python
from tests.unit.data.sources.test_base import CONTENT, contents, write_tar

START_SECONDS = 60.0


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
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
