"""Shards by URL, from an https server on this machine that misbehaves in every way that networks do."""

from __future__ import annotations

import http.server
import json
import multiprocessing
import re
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from mae.data.sources.remote import fetch_shard, url_of
from mae.data.sources.scan import scan_images
from mae.errors import DataError
from mae.io.download import announce_downloads
from maecli.app import app
from tests.torture.trials import TINY
from tests.unit.data.sources.test_base import CONTENT, contents, write_tar, write_zip

CERTIFICATE = Path(__file__).with_name("localhost.pem")


class Server(http.server.ThreadingHTTPServer):
    """Serves ``files``; ``faults`` are what the next answers do instead, one after the other."""

    files: dict[str, bytes]
    faults: list[str]
    asked: list[str]
    tag = '"one"'

    def url(self, name: str) -> str:
        """Where a file is."""
        return f"https://127.0.0.1:{self.server_address[1]}/{name}"

    def handle_error(self, *_: object) -> None:
        """A client that goes away is what some tests are about."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "")
        self.server.asked.append(f"{self.path} {wanted}".strip())
        fault = self.server.faults.pop(0) if self.server.faults else ""
        data = self.server.files.get(self.path.lstrip("/"))
        if data is None or re.fullmatch(r"\d+", fault):
            self.send_error(int(fault or 404))
            return
        if fault.startswith("to "):
            self.send_response(302)
            self.send_header("Location", fault.removeprefix("to "))
            self.end_headers()
            return
        start = 0
        if wanted and self.headers.get("If-Range") == self.server.tag and fault != "no range":
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start + (fault == 'wrong range')}-{len(data) - 1}/{len(data)}")
        if fault != "no length":
            self.send_header("Content-Length", str(10**12 if fault == "vast" else len(data) - start))
        if fault != "no tag":
            self.send_header("ETag", self.server.tag)
        self.end_headers()
        self.wfile.write(data[start : start + 500] if fault == "break" else data[start:])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    monkeypatch.setenv("MAECLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MAECLI_OFFLINE", raising=False)
    monkeypatch.setattr("mae.io.download.BACK_OFF_SECONDS", 0)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    with Server(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        names = sorted(CONTENT)
        server.files = {
            f"train-{number:02d}.tar": write_tar(
                tmp_path / "made.tar", {name: CONTENT[name] for name in names[number::3]}
            ).read_bytes()
            for number in range(3)
        }
        server.faults, server.asked = [], []
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_shards_by_url_are_read_as_from_a_disk(server: Server, tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    with announce_downloads(lambda *event: told.append(event)):
        scan = scan_images([Path(server.url("train-{00..02}.tar"))])
    assert sorted(contents(scan.images)) == sorted(CONTENT.values())
    assert told[-1] == ("train-02.tar", len(server.files["train-02.tar"]), len(server.files["train-02.tar"]))
    assert server.asked == [f"/train-0{number}.tar" for number in range(3)]
    again = scan_images([Path(server.url("train-{00..02}.tar"))], offline=True)
    assert again.images.digest() == scan.images.digest()
    assert len(server.asked) == 3
    local = []
    for number in range(3):
        local.append(tmp_path / f"train-0{number}.tar")
        local[-1].write_bytes(server.files[f"train-0{number}.tar"])
    assert scan_images(local).images.digest() == scan.images.digest()


def test_zip_files_and_words_in_braces(server: Server, tmp_path: Path) -> None:
    server.files["b.zip"] = write_zip(tmp_path / "b.zip", {"x.png": CONTENT["class_0/0000.png"]}).read_bytes()
    scan = scan_images([Path(server.url("{train-01.tar,b.zip}"))])
    assert len(scan.images) == 4


@pytest.mark.parametrize(
    ("faults", "asked"),
    [
        (["503", "429"], ["", "", ""]),
        (["break"], ["", "bytes=500-"]),
        (["break", "break", "break"], ["", "bytes=500-", "bytes=1000-", "bytes=1500-"]),
        (["break", "no range"], ["", "bytes=500-"]),
        (["break", "416"], ["", "bytes=500-", ""]),
        (["break", "wrong range"], ["", "bytes=500-", ""]),
        (["no length"], [""]),
    ],
)
def test_what_breaks_off_is_taken_up_again(faults: list[str], asked: list[str], server: Server) -> None:
    server.faults = [*faults]
    path = fetch_shard(server.url("train-00.tar"))
    assert path.read_bytes() == server.files["train-00.tar"]
    assert server.asked == [f"/train-00.tar {one}".strip() for one in asked]
    assert [one.name for one in path.parent.iterdir() if one.suffix in (".part", ".tag", ".tmp")] == []


def test_the_next_command_goes_on_where_the_last_one_gave_up(server: Server) -> None:
    server.faults = ["break", "503", "503", "503", "503"]
    with pytest.raises(DataError, match=r"cannot be downloaded: the server answers 503 .* \(5 attempts\)") as caught:
        fetch_shard(server.url("train-00.tar"))
    assert server.url("train-00.tar") in caught.value.message
    server.asked.clear()
    path = fetch_shard(server.url("train-00.tar"))
    assert server.asked == ["/train-00.tar bytes=500-"]
    assert path.read_bytes() == server.files["train-00.tar"]


def test_a_file_that_changed_in_between_is_fetched_anew(server: Server) -> None:
    server.faults = ["break", "503", "503", "503", "503"]
    with pytest.raises(DataError):
        fetch_shard(server.url("train-00.tar"))
    server.files["train-00.tar"] = server.files["train-01.tar"]
    server.tag = '"two"'
    assert fetch_shard(server.url("train-00.tar")).read_bytes() == server.files["train-01.tar"]


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        (["404"], "cannot be downloaded: the server answers 404"),
        (["403"], "cannot be downloaded: the server answers 403"),
        (["vast"], "the server sends more than 64,000,000,000 bytes; stopped"),
        (["to http://127.0.0.1/x.tar"], "refused to download over http: only https is used"),
        (["to file:///etc/passwd"], "only https is used|not allowed"),
        (["break"] * 5, r"the download stopped at 2,500 of [\d,]+ bytes \(5 attempts\)"),
    ],
)
def test_what_cannot_be_had_is_named(faults: list[str], message: str, server: Server) -> None:
    server.faults = [*faults]
    with pytest.raises(DataError, match=message) as caught:
        scan_images([Path(server.url("train-00.tar"))])
    assert caught.value.message.startswith(server.url("train-00.tar"))
    assert len(server.asked) == len(faults)


def test_a_shard_larger_than_is_allowed_is_stopped_and_dropped(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mae.data.sources.remote.LARGEST_SHARD", 1000)
    server.faults = ["no length"]
    with pytest.raises(DataError, match="more than 1,000 bytes"):
        fetch_shard(server.url("train-00.tar"))
    assert {path.suffix for path in (tmp_path / "cache/shards").iterdir()} == {".lock"}


def test_a_full_disk_is_seen_before(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(DataError, match=r"it needs 0.0 MB more and the disk of .* has 0.0 MB left"):
        fetch_shard(server.url("train-00.tar"))


def test_a_stranger_in_the_middle_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(DataError, match="certificate is not trusted"):
        fetch_shard(server.url("train-00.tar"))
    assert server.asked == []


def test_no_server(server: Server) -> None:
    with pytest.raises(DataError, match=r"https://127.0.0.1:9/x.tar cannot be downloaded: .*refused.* \(5 attempts\)"):
        fetch_shard("https://127.0.0.1:9/x.tar")


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_offline_says_where_to_put_the_file(how: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "environment":
        monkeypatch.setenv("MAECLI_OFFLINE", "1")
    with pytest.raises(DataError, match="not in the cache, and downloads are disabled") as caught:
        scan_images([Path(server.url("train-00.tar"))], offline=how == "argument")
    assert server.asked == []
    place = Path(re.findall(r"save it as (\S+),", caught.value.hint or "")[0])
    place.parent.mkdir(parents=True)
    place.write_bytes(server.files["train-00.tar"])
    assert len(scan_images([Path(server.url("train-00.tar"))], offline=True).images) == 3


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://host/train-{00..09}.tar", "http://host/train-00.tar: refused to download over http: only https"),
        ("s3://bucket/a.tar", "s3://bucket/a.tar: refused to download over s3"),
        ("ftp://host/a.tar", "refused to download over ftp"),
        ("file:///etc/a.tar", "file://etc/a.tar: refused to download over file"),
        ("https://host/images", r"by URL only .tar, .zip, .parquet are read"),
        ("https://host/a.tar.gz", r"by URL only .tar, .zip, .parquet are read"),
        ("https://host/{0..999999}.tar", "stands for 1,000,000 names"),
    ],
)
def test_what_is_no_shard_by_https_is_refused(url: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        scan_images([Path(url)])
    assert "\n" not in caught.value.message


def test_a_url_survives_as_a_path() -> None:
    """Paths lose a slash, and a run's settings hold them made absolute."""
    url = "https://user.host:443/a%20b/train-{0..9}.tar?key=v=1&x#y"
    assert url_of(Path(url)) == url
    assert url_of(Path(url).absolute()) == url
    for place in ("photos", "/data/photos", "c:/photos", "a:b", "https:", "../x.tar"):
        assert url_of(Path(place)) is None


def test_a_folder_that_looks_like_a_url_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run:/a").mkdir(parents=True)
    assert url_of(tmp_path / "run:/a") is None
    monkeypatch.chdir(tmp_path)
    assert url_of(Path("run:/a")) is None
    assert url_of(Path("run:/b")) == "run://b"


def _fetch(url: str) -> None:
    fetch_shard(url)


def test_several_processes_fetch_a_shard_once(server: Server) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_fetch, args=(server.url("train-00.tar"),)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert server.asked == ["/train-00.tar"]


def test_images_of_a_shard_are_decoded(server: Server) -> None:
    scan = scan_images([Path(server.url("train-00.tar"))])
    assert isinstance(scan.images.load(0, 3), Image.Image)


def test_pretrain_offline_is_refused(server: Server) -> None:
    done = CliRunner().invoke(app, ["pretrain", server.url("train-00.tar"), *map(str, TINY), "--offline"])
    assert done.exit_code == 3
    assert "not in the cache, and downloads are disabled" in done.stderr
    assert server.asked == []


def test_pretrain_takes_urls_and_resumes(server: Server, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["pretrain", server.url("train-{00..02}.tar"), *map(str, TINY), "--out", str(run), "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.stderr
    assert "downloading train-00.tar" in done.stderr
    assert json.loads(done.stdout)["epochs"] == 1
    done = CliRunner().invoke(app, ["pretrain", "--resume", str(run), "--epochs", "2", "--offline", "--json"])
    assert done.exit_code == 0, done.stderr
    assert len(server.asked) == 3
