"""Sources behind URLs, from a local HTTP server that simulates network failures."""

from __future__ import annotations

import dataclasses
import http.server
import json
import os
import pickle
import re
import shutil
import threading
import time
import unittest.mock
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")

import mae.data.block_cache
import mae.data.decoding.formats
import mae.data.sources.remote
import mae.data.sources.remote_sources
from mae.data.block_cache import BlockCache
from mae.data.decoding.formats import ImageError
from mae.data.sources import remote_sources
from mae.data.sources.base import Subset
from mae.data.sources.given import GivenImages
from mae.data.sources.remote import RemoteError, RemoteObject
from mae.data.sources.scan import scan_images
from mae.errors import DataError
from mae.evaluation.splits import read_labels
from mae.evaluation.store import content_digest
from mae.training.classifier_config import FinetuneConfig, LinprobeConfig
from mae.training.engine import plan_task
from mae.training.events import Event, Stepped
from mae.training.labelled import divide
from mae.training.pretrain import PRETRAINING, pretrain
from maecli.app import app
from tests.unit.data.sources.test_base import CONTENT, contents, image_bytes, write_parquet, write_tar, write_zip
from tests.unit.training.small import logged, make_models_small, same, small_config, stop_after, weights

FAULT_SEEDS = [int(word) for word in os.environ.get("MAECLI_FAULT_SEEDS", "0 1").split()]


class Server(http.server.ThreadingHTTPServer):
    """Serves ``files``; the next answers fail as ``faults`` and, to requests without a range, ``info_faults`` say."""

    files: dict[str, bytes]
    faults: list[str]
    info_faults: list[str]
    asked: list[str]
    tag = '"one"'
    signature = ""
    delay = 0.0  # before each answer
    sizes = True  # whether answers have a Content-Length
    daemon_threads = True

    def url(self, name: str) -> str:
        """The URL of a file."""
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"

    def handle_error(self, *_: object) -> None:
        """Ignore errors of a client that closes its connection, as some tests do."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        time.sleep(self.server.delay)
        path, _, query = self.path.partition("?")
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        faults = self.server.faults if wanted else self.server.info_faults
        fault = faults.pop(0) if faults else ""
        if body:
            self.server.asked.append(f"{path} {self.headers.get('Range', '')}")
        data = self.server.files.get(path.lstrip("/"))
        if self.server.signature and query != self.server.signature:
            self.send_error(403)
            return
        if data is None or fault.isdigit():
            self.send_error(int(fault or 404))
            return
        if fault.startswith("to "):
            self.send_response(302)
            self.send_header("Location", fault.removeprefix("to "))
            self.end_headers()
            return
        if fault == "hang":
            time.sleep(20)
            return
        if fault == "drop":
            self.close_connection = True
            return
        start, end = (int(wanted[1]), min(int(wanted[2]) + 1, len(data))) if wanted else (0, len(data))
        part = data[start:end]
        if fault == "short":
            part = part[:-7]
        if fault == "all":
            part, wanted = data, None
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        if self.server.sizes:
            self.send_header("Content-Length", str(len(part)))
        if self.server.tag:
            self.send_header("ETag", self.server.tag)
        self.end_headers()
        if body:
            self.wfile.write(part[: len(part) // 2] if fault == "break" else part)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("MAECLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MAECLI_OFFLINE", raising=False)
    monkeypatch.setattr(mae.data.sources.remote, "FIRST_PAUSE", 0.0)
    monkeypatch.setattr(mae.data.sources.remote, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(mae.data.sources.remote, "BUFFER_BYTES", 100)
    with Server(("127.0.0.1", 0), Handler) as server:
        names = sorted(CONTENT)
        made = tmp_path / "made"
        server.files = {
            f"train-{number:02d}.tar": write_tar(made, {name: CONTENT[name] for name in names[number::3]}).read_bytes()
            for number in range(3)
        }
        made.unlink()
        server.faults, server.info_faults, server.asked = [], [], []
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def blocks(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache" / "blocks").glob("*/[0-9]*") if path.parent.name != "locks"]


def local(server: Server, folder: Path) -> list[Path]:
    folder.mkdir()
    for name, data in server.files.items():
        (folder / name).write_bytes(data)
    return sorted(folder.iterdir())


def test_images_are_those_of_the_files(server: Server, tmp_path: Path) -> None:
    scan = scan_images([Path(server.url("train-{00..02}.tar"))])
    assert sorted(contents(scan.images)) == sorted(CONTENT.values())
    here = scan_images(local(server, tmp_path / "here"))
    assert scan.images.digest() == here.images.digest()
    assert sum(scan.images.groups) == len(CONTENT)
    assert all(asked.endswith(tuple("0123456789")) for asked in server.asked)  # only range requests
    asked = len(server.asked)
    again = scan_images([Path(server.url("train-{00..02}.tar"))])  # by the index, from the cache
    assert sorted(contents(again.images)) == sorted(CONTENT.values())
    assert len(server.asked) == asked


def test_zip_and_parquet(server: Server, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    pa = pytest.importorskip("pyarrow")
    server.files["some.zip"] = write_zip(tmp_path / "x.zip", CONTENT).read_bytes()
    table = pa.table({"image": [{"bytes": data, "path": name} for name, data in CONTENT.items()]})
    parquet.write_table(table, tmp_path / "x.parquet", row_group_size=4)
    server.files["some.parquet"] = (tmp_path / "x.parquet").read_bytes()
    for name in ("some.zip", "some.parquet"):
        scan = scan_images([Path(server.url(name))])
        assert sorted(contents(scan.images)) == sorted(CONTENT.values())


@pytest.mark.parametrize("fault", ["503", "500", "429", "break", "short", "hang"])
def test_what_passes_is_tried_again(fault: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mae.data.sources.remote, "ATTEMPT_SECONDS", 0.5)
    remote = RemoteObject(server.url("train-00.tar"), BlockCache(Path("/dev/null/no"), 10**6))
    server.faults = [fault, fault]
    assert remote.read(100, 2500) == server.files["train-00.tar"][100:2500]


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        (["503"] * 9, "the server answers 503, after 5 attempts"),
        (["403"], "the server answers 403"),
        (["404"], "there is no such object"),
        (["short"] * 9, "got 993 bytes instead of 1,000, after 5 attempts"),
        (["all"] * 9, "bytes instead of 1,000, after 5 attempts"),
        (["to http://example.invalid/x.tar"], "http://example.invalid/x.tar: http is refused"),
        (["hang"] * 9, "no response within 0.2 seconds, after 5 attempts"),
    ],
)
def test_what_does_not_pass_names_the_object(
    faults: list[str], words: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = RemoteObject(server.url("train-00.tar?sig=very-secret"), BlockCache(Path("/dev/null/no"), 10**6))
    monkeypatch.setattr(mae.data.sources.remote, "ATTEMPT_SECONDS", 0.2)
    server.faults = faults
    with pytest.raises(RemoteError, match=re.escape(words)) as caught:
        remote.read(0, 1000)
    assert server.url("train-00.tar") in caught.value.message or "example.invalid" in words
    assert "very-secret" not in str(caught.value)


@pytest.mark.parametrize("fault", ["503", "429", "drop", "hang"])
def test_the_check_that_nothing_has_changed_is_tried_again(
    fault: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = RemoteObject(server.url("train-00.tar"), BlockCache(Path("/dev/null/no"), 10**6))
    monkeypatch.setattr(mae.data.sources.remote, "ATTEMPT_SECONDS", 0.5)
    server.info_faults = [fault] * 4  # fsspec asks twice each time, by HEAD and by GET
    assert remote.read(0, 1000) == server.files["train-00.tar"][:1000]
    assert len(server.info_faults) < 4


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        (["503"] * 10, "the server answers 503, after 5 attempts"),
        (["403"] * 2, "the server answers 403"),
        (["404"] * 2, "there is no such object"),
        (["drop"] * 20, "Server disconnected, after 5 attempts"),
        (["to http://example.invalid/x.tar"] * 2, "http://example.invalid/x.tar: http is refused"),
    ],
)
def test_an_object_that_cannot_be_asked_for_is_not_called_missing(
    faults: list[str], words: str, server: Server
) -> None:
    server.info_faults = faults
    with pytest.raises(RemoteError, match=re.escape(words)) as caught:
        RemoteObject(server.url("train-00.tar?sig=very-secret"), BlockCache(Path("/dev/null/no"), 10**6))
    assert "very-secret" not in str(caught.value)


def test_a_server_that_refuses_connections_is_not_called_an_object_that_is_missing(server: Server) -> None:
    with pytest.raises(RemoteError, match=r"Cannot connect to host 127\.0\.0\.1:1 .*, after 5 attempts"):
        RemoteObject("http://127.0.0.1:1/x.tar", BlockCache(Path("/dev/null/no"), 10**6))


def test_an_object_without_a_size_is_refused_at_once(server: Server) -> None:
    server.sizes = False
    with pytest.raises(RemoteError, match=r"00\.tar cannot be read: the server does not give its size$") as caught:
        scan_images([Path(server.url("train-00.tar"))])
    assert caught.value.hint == "download it first"
    assert len(server.asked) <= 1


def test_an_object_that_changes_is_never_mixed(server: Server) -> None:
    scan = scan_images([Path(server.url("train-00.tar"))])
    shutil.rmtree(Path(mae.data.sources.remote.cache_folder()) / "blocks")
    server.tag = '"two"'
    with pytest.raises(RemoteError, match=r'train-00\.tar has changed since .*"one" then, .*"two" now'):
        contents(scan.images)
    again = scan_images([Path(server.url("train-00.tar"))])  # another index, other blocks
    assert len(contents(again.images)) == 3


def test_without_a_version_nothing_is_kept_for_another_run(server: Server, tmp_path: Path) -> None:
    server.tag = ""
    url = server.url("train-00.tar")
    first = scan_images([Path(url)])
    data = contents(first.images)
    asked = len(server.asked)
    assert contents(first.images) == data
    assert len(server.asked) == asked  # from the cache
    old = next(value for value in CONTENT.values() if value in data)
    new = old[:-20] + bytes(8) + old[-12:]
    server.files["train-00.tar"] = server.files["train-00.tar"].replace(old, new)
    again = contents(scan_images([Path(url)]).images)
    assert again != data
    assert new in again
    assert list((tmp_path / "cache").rglob("remote-*.json")) == []


def test_a_server_without_versions_is_named_before_the_first_step(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_models_small(monkeypatch)
    server.files["rest.zip"] = write_zip(tmp_path / "x.zip", CONTENT).read_bytes()
    shards, rest = (Path(server.url(name)) for name in ("train-{00..02}.tar", "rest.zip"))
    events: list[Event] = []
    config = small_config(tmp_path, tmp_path / "run")
    plan_task(PRETRAINING, dataclasses.replace(config, data=(shards,)), events.append)
    assert scan_images([shards, local(server, tmp_path / "here")[0]]).images.warnings == []
    server.tag = ""
    started = plan_task(PRETRAINING, dataclasses.replace(config, data=(shards,)), events.append)
    (warning,) = started.warnings
    assert warning.startswith(f"{server.url('train-00.tar')} and 2 more: the server gives neither an ETag nor a date")
    assert Subset(scan_images([rest, tmp_path / "x.zip"]).images, np.array([0])).warnings == [
        warning.replace(f"{server.url('train-00.tar')} and 2 more", server.url("rest.zip"))
    ]
    seen = CliRunner().invoke(app, ["inspect", f"{shards}", "--json"])
    assert warning in " ".join(seen.stderr.split())
    assert json.loads(seen.stdout)["notes"] == [warning]


def test_no_signature_is_shown(server: Server, tmp_path: Path) -> None:
    server.files["flat.tar"] = write_tar(
        tmp_path / "x", {Path(name).name: data for name, data in CONTENT.items()}
    ).read_bytes()
    server.signature = "sig=very-secret"
    for name in ("train-{00..02}.tar", "train-00.tar", "flat.tar"):
        url = Path(server.url(f"{name}?sig=very-secret"))
        scan = scan_images([url])
        classes = () if name == "flat.tar" else ("class_0", "class_1")
        assert read_labels(scan.images, [url]).classes == classes  # although the names of images have no signature
        assert GivenImages([url], 2).notes == [
            f"{server.url(name)}: 2 of {len(scan.images)} images; --limit {len(scan.images)} shows all"
        ]
    for config in (FinetuneConfig, LinprobeConfig):
        with pytest.raises(DataError, match=re.escape(f"{server.url('flat.tar')}: there are no class folders")):
            divide(scan, config(data=(url,)))
    with pytest.raises(DataError, match=re.escape(f"--probe {server.url('flat.tar')}: there are no class folders")):
        plan_task(PRETRAINING, dataclasses.replace(small_config(tmp_path, tmp_path / "run"), data=(url,), probe=url))
    seen = CliRunner().invoke(app, ["inspect", f"{url}", "--verbose"])
    assert seen.exit_code == 0
    assert f"data = {server.url('flat.tar')}" in seen.stderr
    assert "very-secret" not in seen.output


def test_a_request_has_the_slashes_that_were_typed(server: Server) -> None:
    server.files["deep//a.tar"] = server.files["train-00.tar"]
    server.signature = "sig=a//b/./c/"
    seen = CliRunner().invoke(app, ["inspect", server.url("deep//a.tar?sig=a//b/./c/"), "--json"])
    assert seen.exit_code == 0, seen.stderr
    assert json.loads(seen.stdout)["data"] == [server.url("deep//a.tar")]
    assert {line.split()[0] for line in server.asked} == {"/deep//a.tar"}
    assert "sig" not in seen.output


def test_chosen_images_are_fetched_ahead_and_group_by_group(server: Server, tmp_path: Path) -> None:
    scan = scan_images([Path(server.url("train-{00..02}.tar"))])
    assert [*scan.images.groups] == [3, 3, 3]
    chosen = Subset(scan.images, np.array([0, 2, 3, 6, 7, 8]))
    assert [*chosen.groups] == [2, 1, 3]
    assert chosen.is_remote
    assert chosen.memories is scan.images.memories
    for block in blocks(tmp_path):
        block.unlink()
    chosen.prefetch(2)
    asked = len(server.asked)
    assert chosen.open(2).read() in CONTENT.values()
    assert len(server.asked) == asked
    assert [*Subset(scan.images, np.array([], np.int64)).groups] == []


@pytest.mark.parametrize("kind", ["bytes", "struct"])
def test_row_groups_are_fetched_ahead(kind: str, server: Server, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    pa = pytest.importorskip("pyarrow")
    images = [data if kind == "bytes" else {"bytes": data, "path": name} for name, data in CONTENT.items()]
    other = [np.random.default_rng(row).bytes(30_000).hex() for row in range(9)]
    parquet.write_table(
        pa.table({"label": [*range(9)], "image": images, "other": other}), tmp_path / "x.parquet", row_group_size=3
    )
    server.files["some.parquet"] = (tmp_path / "x.parquet").read_bytes()
    source = scan_images([Path(server.url("some.parquet"))]).images
    assert source.is_remote
    for block in blocks(tmp_path):
        block.unlink()
    server.asked.clear()
    source.prefetch(5)
    assert server.asked
    asked = len(server.asked)
    source.prefetch(4)  # of the same group
    assert len(server.asked) == asked
    assert source.open(5).read() == [*CONTENT.values()][5]
    footer = len(server.files["some.parquet"]) - 70_000  # pyarrow reads the last 64 KiB whenever it opens a file
    late = [line for line in server.asked[asked:] if int(line.split("=")[1].split("-")[0]) < footer]
    assert late == []


def test_names_keep_the_double_slash_of_a_url(server: Server) -> None:
    url = server.url("bad.tar")
    server.files["bad.tar"] = b"<html>" * 100
    with pytest.raises(DataError, match=re.escape(f"{url} is not a tar file")):
        scan_images([Path(url)])


def test_a_cache_that_is_deleted_damaged_or_full(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = scan_images([Path(server.url("train-{00..02}.tar"))])
    shutil.rmtree(tmp_path / "cache")
    assert sorted(contents(scan.images)) == sorted(CONTENT.values())
    for path in blocks(tmp_path):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    fresh = scan_images([Path(server.url("train-{00..02}.tar"))])  # a block is verified when it is first read
    assert sorted(contents(fresh.images)) == sorted(CONTENT.values())
    for path in blocks(tmp_path):
        path.unlink()
    monkeypatch.setattr(mae.data.block_cache, "LEAST_FREE", 10**18)  # the disk is full
    assert sorted(contents(fresh.images)) == sorted(CONTENT.values())
    assert blocks(tmp_path) == []


def test_an_index_of_another_pillow_is_not_used(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version may read what this one calls unreadable; the indices of folders are checked alike."""
    listed: list[Path] = []
    list_members = remote_sources.list_members
    monkeypatch.setattr(
        remote_sources, "list_members", lambda path, *about: [listed.append(path), list_members(path, *about)][1]
    )
    for version, times in (("13.0", 1), ("13.0", 1), ("13.1", 2)):
        monkeypatch.setattr("PIL.__version__", version)
        scan_images([Path(server.url("train-00.tar"))])
        assert len(listed) == times


def test_blocks_of_another_user_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their times cannot be set, nor those of a disk that is mounted for reading."""
    BlockCache(tmp_path, 10_000).put("a", 0, b"data")
    monkeypatch.setattr("os.utime", unittest.mock.Mock(side_effect=PermissionError))
    cache = BlockCache(tmp_path, 10_000)
    assert [cache.get("a", 0, 4, start, start + 2) for start in (0, 2)] == [b"da", b"ta"]


def test_the_cache_is_bounded_and_the_newest_stay(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 10_000)
    for number in range(50):
        cache.put("a", number, bytes([number]) * 1000)
        cache.get("a", 0, 1000, 0, 1)
        assert sum(path.stat().st_size for path in tmp_path.glob("a/*")) <= 10_000 + 1004
        time.sleep(0.002)
    assert cache.get("a", 49, 1000, 10, 12) == bytes([49, 49])
    assert cache.get("a", 0, 1000, 0, 1) == b"\0"  # it was used last
    assert cache.get("a", 20, 1000, 0, 1) is None
    cache.make_room(share=0)
    assert list(cache.folder.iterdir()) == []  # no folder of each object remains


def test_single_images(server: Server, tmp_path: Path) -> None:
    names = sorted(CONTENT)[:2]
    server.files |= {name: CONTENT[name] for name in names} | {"broken.png": CONTENT[names[0]][:100]}
    urls = [Path(server.url(f"{name}?key=secret")) for name in names]
    scan = scan_images(urls)
    assert [scan.images.name(number) for number in range(2)] == [Path(server.url(name)) for name in names]
    with scan.images.open(1) as file:
        assert file.read() == CONTENT[names[1]]
    assert scan.images.digest() != scan_images(urls[:1]).images.digest()

    given = GivenImages([*urls, Path(server.url("train-00.tar"))], 1)
    assert [path for path, _ in given.decode(3)] == [
        *(Path(server.url(name)) for name in names),
        Path(server.url("train-00.tar")) / names[0],
    ]
    broken = GivenImages([Path(server.url("broken.png"))], 8)
    with pytest.raises(ImageError, match=r"/broken\.png: cannot be decoded"):
        list(broken.decode(3))
    with pytest.raises(DataError, match=r"none\.png cannot be read: there is no such object"):
        GivenImages([Path(server.url("none.png"))], 8)


def test_images_of_a_host_share_connections(server: Server) -> None:
    """A thousand images would else keep a thousand connections open."""
    server.files |= {f"{number}.png": image_bytes(number) for number in range(5)}
    images = scan_images([Path(server.url("{0..4}.png"))]).images
    for source in (images, pickle.loads(pickle.dumps(images))):
        assert len({id(one._connections.system(one.url, one.name)[0]) for one in source._objects}) == 1


def test_features_are_of_one_version(server: Server, tmp_path: Path) -> None:
    server.files |= {"a.png": image_bytes(1), "a.parquet": write_parquet(tmp_path / "a.parquet", CONTENT).read_bytes()}
    sources = [[Path(server.url(name))] for name in ("a.png", "train-00.tar", "a.parquet")]
    sources.append([path for (path,) in sources])

    def digests() -> list[str]:
        images = [scan_images(paths).images for paths in sources]
        return [content_digest(Subset(one, np.arange(1))) for one in images]

    before = digests()
    assert digests() == before
    server.tag = '"two"'
    assert not set(digests()) & set(before)


def test_a_single_image_that_is_too_large(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["large.png"] = CONTENT[min(CONTENT)]
    monkeypatch.setattr(mae.data.decoding.formats, "MAX_FILE_BYTES", 10)
    images = scan_images([Path(server.url("large.png"))]).images
    with pytest.raises(ImageError, match=r"large\.png: is too large"):
        images.open(0)
    images.prefetch(0)
    assert server.asked == []


def test_offline_and_other_refusals(server: Server) -> None:
    url = Path(server.url("train-00.tar"))
    asked = len(server.asked)
    with pytest.raises(DataError, match="downloads are disabled"):
        scan_images([url], offline=True)
    assert len(server.asked) == asked
    for name, words in (
        ("https://host/x.jpg.gz", "by URL only images and .tar, .zip, .parquet files are read"),
        ("http://example.invalid/x.tar", "http is refused"),
        ("nonsense://host/x.tar", "nonsense"),
        ("file:///photos/x.tar", "a file on this machine is given by its path"),
        ("s3://KEY:se/cret@bucket/x.tar", "s3://bucket/x.tar: the credentials before @ in the URL cannot be used"),
        ("https://me:se/cret@host/x.tar", "https://host/x.tar: the credentials before @ in the URL cannot be used"),
        ("s3://bucket/optimized", "copy a folder, also that of a litdata data set, to this machine first"),
        (server.url("train-*.tar"), "* is not expanded in a URL"),
    ):
        with pytest.raises(DataError) as caught:
            scan_images([Path(name)])
        said = f"{caught.value.message} {caught.value.hint}"
        assert words in said
        assert "cret" not in said


@pytest.mark.parametrize(("seed", "share"), [(seed, 0.8 if seed % 2 else 0.2) for seed in FAULT_SEEDS])
def test_random_faults_change_no_weight(
    seed: int, share: float, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends with the weights of a run without faults, or with an error that names the object."""
    make_models_small(monkeypatch)
    monkeypatch.setattr(mae.data.sources.remote_sources, "GROUP_BYTES", 2000)
    server.files["rest.zip"] = write_zip(tmp_path / "x.zip", CONTENT).read_bytes()
    server.files["some.parquet"] = write_parquet(tmp_path / "x.parquet", CONTENT, rows=3).read_bytes()
    urls = tuple(Path(server.url(name)) for name in ("train-{00..02}.tar", "rest.zip", "some.parquet"))
    config = dataclasses.replace(small_config(tmp_path, tmp_path / "whole"), data=urls, epochs=1)
    pretrain(config)
    shutil.rmtree(tmp_path / "cache")
    rng = np.random.default_rng(seed)
    kinds = ["503", "500", "429", "break", "drop"]
    for faults, these in ((server.faults, [*kinds, "short", "all"]), (server.info_faults, kinds)):
        faults += [str(rng.choice(these)) if rng.random() < share else "" for _ in range(600)]
    faulty = dataclasses.replace(config, out=tmp_path / "faulty", workers=1)
    failure = ""
    try:
        pretrain(faulty)
    except RemoteError as error:
        failure = error.message
    assert len(server.faults) + len(server.info_faults) < 1200
    server.faults.clear()
    server.info_faults.clear()
    if failure:
        assert re.match(rf"{server.url('')}(train-0[0-2]\.tar|rest\.zip|some\.parquet) cannot be read: ", failure)
    else:
        assert same(weights(config.out), weights(faulty.out))
    assert bool(failure) == (share > 0.5)


def test_training_is_the_same_as_from_files_and_goes_on_exactly(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_models_small(monkeypatch)
    monkeypatch.setattr(mae.data.sources.remote_sources, "GROUP_BYTES", 2000)
    server.signature = "sig=very-secret"
    url = Path(server.url("train-{00..02}.tar?sig=very-secret"))
    config = dataclasses.replace(small_config(tmp_path, tmp_path / "whole"), data=(url,), workers=1)
    pretrain(config)
    parted = dataclasses.replace(config, out=tmp_path / "parted")
    pretrain(parted, *stop_after(4))
    shutil.rmtree(tmp_path / "cache")
    pretrain(dataclasses.replace(parted, resume=parted.out))
    assert same(weights(config.out), weights(parted.out))
    assert logged(config.out) == logged(parted.out)
    for path in parted.out.rglob("*"):
        assert not path.is_file() or b"very-secret" not in path.read_bytes(), path


def test_the_first_epoch_shows_that_it_waited_for_the_network(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_models_small(monkeypatch)
    url = Path(server.url("train-{00..02}.tar"))
    scan_images([url])
    for block in blocks(tmp_path):
        block.unlink()
    server.delay = 0.1
    result = pretrain(dataclasses.replace(small_config(tmp_path, tmp_path / "run"), data=(url,), workers=0))
    waits = [json.loads(line).get("data_wait") for line in (result.run / "log.jsonl").read_text().splitlines()
             if "train_loss" in line]  # fmt: skip
    assert result.first_data_wait is not None
    assert result.data_wait is not None
    assert round(result.first_data_wait, 4) == round(waits[0], 4) > max(waits[1:])
    assert min(waits) < result.data_wait < waits[0]
    again = pretrain(dataclasses.replace(small_config(tmp_path, result.run), data=(url,), resume=result.run))
    assert (again.data_wait, again.first_data_wait) == (None, None)


def test_a_store_that_goes_away_stops_the_run_and_is_named(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_models_small(monkeypatch)
    config = dataclasses.replace(
        small_config(tmp_path, tmp_path / "run"), data=(Path(server.url("train-00.tar")),), workers=1, epochs=100
    )

    def listen(event: Event) -> None:
        if isinstance(event, Stepped) and event.step == 1:
            server.files.clear()
            shutil.rmtree(tmp_path / "cache")

    with pytest.raises(DataError, match=r"train-00\.tar cannot be read: there is no such object") as caught:
        pretrain(config, listen)
    assert "Traceback" not in str(caught.value)
    end = time.monotonic() + 10  # while the error, and what it holds, is still there
    while any(thread.name.startswith("prefetch") for thread in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.05)
