"""Released names: downloaded once from a local server and verified; incomplete files are never used."""

from __future__ import annotations

import hashlib
import http.server
import io
import threading
import unittest.mock
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mae.checkpoints import load_checkpoint
from mae.checkpoints.hub import RELEASES, Release, fetch, release_of
from mae.errors import CheckpointError, ConfigError
from mae.io.download import announce_downloads, cache_folder
from tests.golden import official

TINY = official.GOLDEN["golden_tiny"]


class Server(http.server.ThreadingHTTPServer):
    """Answers every path with the same content, and counts requests."""

    content = b""
    stated_size: int | None = None
    status = 200
    redirect = ""
    asked = 0

    def handle_error(self, *_: object) -> None:
        """Ignore errors of a client that closes its connection, as some tests do."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked += 1
        self.send_response(302 if self.server.redirect else self.server.status)
        if self.server.redirect:
            self.send_header("Location", self.server.redirect)
        self.send_header("Content-Length", str(self.server.stated_size or len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        file = io.BytesIO()
        torch.save(official.checkpoint(TINY), file)
        server.content = file.getvalue()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def release(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Release:
    """A released name whose URL is the local server, over http, which only tests allow."""
    monkeypatch.setenv("MAECLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MAECLI_OFFLINE", raising=False)
    monkeypatch.setattr("mae.io.download.ALLOWED_SCHEMES", ("http",))
    monkeypatch.setattr("mae.io.download.BACK_OFF_SECONDS", 0)
    digest = hashlib.md5(server.content).hexdigest()
    url = f"http://127.0.0.1:{server.server_address[1]}/file.pth"
    release = Release("mae_visualize_vit_base", url, False, digest[:6])
    monkeypatch.setitem(RELEASES, release.name, release)
    return release


def kept(tmp_path: Path) -> list[str]:
    """The visible files of the cache; incomplete downloads have hidden names."""
    folder = tmp_path / "cache"
    return sorted(path.name for path in folder.iterdir() if path.name[0] != ".") if folder.exists() else []


def test_a_name_is_downloaded_once(release: Release, server: Server, tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    with announce_downloads(lambda *event: told.append(event)):
        checkpoint = load_checkpoint("mae_visualize_vit_base")
    assert checkpoint.path == tmp_path / "cache/mae_visualize_vit_base.pth"
    assert checkpoint.norm_pix_loss is False
    assert any("CC BY-NC 4.0" in note for note in checkpoint.notes)
    assert torch.equal(checkpoint.state["norm.bias"], official.weights(TINY)["norm.bias"])
    size = len(server.content)
    assert told[-1] == (release.name, size, size)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert len(told) == -(-size // (1 << 20))
    load_checkpoint("mae_visualize_vit_base.pth", offline=True)
    load_checkpoint(Path("mae_visualize_vit_base"))
    assert server.asked == 1
    assert kept(tmp_path) == ["mae_visualize_vit_base.pth"]


def test_a_file_of_that_name_comes_first(
    release: Release, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(official.checkpoint(TINY), "mae_visualize_vit_base.pth")
    assert load_checkpoint("mae_visualize_vit_base.pth").path == Path("mae_visualize_vit_base.pth")
    assert server.asked == 0


def test_the_hubs_names_need_no_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``facebook/vit-mae-base`` is the Hub's name; a file or folder of that name takes precedence."""
    monkeypatch.setenv("MAECLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name in ("facebook/vit-mae-base", "hf:facebook/vit-mae-base"):
        with pytest.raises(CheckpointError, match="hf:facebook/vit-mae-base is not in the cache") as caught:
            load_checkpoint(name, offline=True)
        assert "hf--facebook--vit-mae-base.bin" in (caught.value.hint or "")
        assert "CC BY-NC 4.0" in (caught.value.hint or "")
    folder = tmp_path / "facebook/vit-mae-base"
    folder.mkdir(parents=True)
    torch.save(official.checkpoint(TINY), folder / "pytorch_model.bin")
    (folder / "config.json").write_text('{"model_type": "vit_mae"}')
    assert load_checkpoint("facebook/vit-mae-base").path == Path("facebook/vit-mae-base/pytorch_model.bin")


@pytest.mark.parametrize("how", ["option", "environment"])
def test_offline_says_where_to_put_the_file(
    how: str, release: Release, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "environment":
        monkeypatch.setenv("MAECLI_OFFLINE", "1")
    with pytest.raises(CheckpointError, match="not in the cache, and downloads are disabled") as caught:
        load_checkpoint("mae_visualize_vit_base", offline=how == "option")
    assert caught.value.hint is not None
    assert str(tmp_path / "cache/mae_visualize_vit_base.pth") in caught.value.hint
    assert release.url in caught.value.hint
    assert "CC BY-NC 4.0" in caught.value.hint
    assert server.asked == 0
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/mae_visualize_vit_base.pth").write_bytes(server.content)  # put there by hand
    assert load_checkpoint("mae_visualize_vit_base", offline=how == "option").kind == "full"


def test_no_network(release: Release, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = Release(release.name, "http://127.0.0.1:9/file.pth", False)
    monkeypatch.setitem(RELEASES, release.name, gone)
    with pytest.raises(CheckpointError, match=r"cannot be downloaded: .*refused") as caught:
        load_checkpoint(release.name)
    assert f"save it as {tmp_path / 'cache/mae_visualize_vit_base.pth'}" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"content": b"<html>"}, "is not the released file"),
        ({"stated_size": 10**7}, "stopped at 3,0.* of 10,000,000 bytes|IncompleteRead"),
        ({"stated_size": 10**10}, "more than 4,000,000,000 bytes"),
        ({"status": 404}, "cannot be downloaded"),
        ({"redirect": "ftp://127.0.0.1/file"}, "only https is used"),
        ({"redirect": "file:///etc/passwd"}, "only https is used|not allowed"),
    ],
)
def test_nothing_bad_is_kept(
    change: dict[str, object], message: str, release: Release, server: Server, tmp_path: Path
) -> None:
    for name, value in change.items():
        setattr(server, name, value)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(release.name)
    assert "save it as" in (caught.value.hint or "")
    assert kept(tmp_path) == []
    if "content" in change:  # a download of another file is not resumed
        assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_only_https(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAECLI_CACHE", str(tmp_path))
    monkeypatch.delenv("MAECLI_OFFLINE", raising=False)
    with pytest.raises(CheckpointError, match="refused to download over http"):
        fetch(Release("x", "http://127.0.0.1:9/x", None))
    assert all(release.url.startswith("https://") for release in RELEASES.values())


def test_the_released_files() -> None:
    assert len(RELEASES) == 16
    assert {name: release.md5_prefix for name, release in RELEASES.items() if release.md5_prefix} == {
        "mae_pretrain_vit_base": "8cad7c",
        "mae_pretrain_vit_large": "b8b06e",
        "mae_pretrain_vit_huge": "9bdbb0",
    }
    for release in RELEASES.values():
        assert release_of(release.file_name) is release
        assert "/" not in release.file_name
    assert RELEASES["hf:facebook/vit-mae-base"].file_name == "hf--facebook--vit-mae-base.bin"


def test_a_near_name_is_suggested() -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint file") as caught:
        load_checkpoint("mae_visualise_vit_base")
    assert "mae_visualize_vit_base" in (caught.value.hint or "")


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MAECLI_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "maecli"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache/maecli"


def test_without_a_home_folder_the_cache_has_to_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("MAECLI_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", unittest.mock.Mock(side_effect=RuntimeError("Could not determine home")))
    with pytest.raises(ConfigError, match="this user has no home folder") as caught:
        cache_folder()
    assert "MAECLI_CACHE" in str(caught.value.hint)
    monkeypatch.setenv("MAECLI_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
