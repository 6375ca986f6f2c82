"""A second scan reads only what changed, and does not use outdated results."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from mae.data.sources import folder as folders
from mae.data.sources import scan_index
from mae.data.sources.scan import ImageScan, scan_images


@pytest.fixture
def looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that a scan opens; every scan is cached, in a folder of the test."""
    monkeypatch.setenv("MAECLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(scan_index, "WORTH_KEEPING", 0)
    monkeypatch.setattr(scan_index, "SETTLED_NS", 0)
    names: list[str] = []
    look = folders._kind_of_file
    monkeypatch.setattr(
        folders, "_kind_of_file", lambda path: (names.append(Path(os.fsdecode(path)).name), look(path))[1]
    )
    return names


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for name in ("a/0.png", "a/1.png", "b/c/2.png", "3.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name)
    (folder / "a/broken.png").write_bytes(b"")
    (folder / "b/dangling.png").symlink_to(folder / "later.bin")
    (folder / "notes.txt").write_text("words")
    return folder


def summary(scan: ImageScan, folder: Path) -> tuple[list[str], list[str], int]:
    names = [str(scan.images.name(i).relative_to(folder)) for i in range(len(scan.images))]
    return names, [str(bad.path.relative_to(folder)) for bad in scan.unreadable], scan.others


def scan(folder: Path, looked_at: list[str]) -> tuple[list[str], list[str], int]:
    looked_at.clear()
    return summary(scan_images([folder]), folder)


def test_nothing_is_read_twice(data: Path, looked_at: list[str]) -> None:
    first = scan(data, looked_at)
    assert first == (["3.png", "a/0.png", "a/1.png", "b/c/2.png"], ["a/broken.png", "b/dangling.png"], 1)
    assert len(looked_at) == 7
    assert scan(data, looked_at) == first
    assert looked_at == []


def test_names_that_come_and_go_are_noticed(data: Path, looked_at: list[str]) -> None:
    scan(data, looked_at)
    Image.new("RGB", (4, 4)).save(data / "b/c/9.png")
    (data / "a/0.png").rename(data / "a/7.png")
    names, _, _ = scan(data, looked_at)
    assert names == ["3.png", "a/1.png", "a/7.png", "b/c/2.png", "b/c/9.png"]
    assert "3.png" not in looked_at
    (data / "a/1.png").unlink()
    Image.new("RGB", (4, 4)).save(data / "new.png")
    (data / "d/e").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(data / "d/e/x.png")
    names, _, _ = scan(data, looked_at)
    assert names == ["3.png", "new.png", "a/7.png", "b/c/2.png", "b/c/9.png", "d/e/x.png"]


def test_what_was_mended_in_place_is_noticed(data: Path, looked_at: list[str]) -> None:
    scan(data, looked_at)
    Image.new("RGB", (4, 4)).save(data.parent / "whole.png")
    (data / "a/broken.png").write_bytes((data.parent / "whole.png").read_bytes())  # the folder's times stay
    Image.new("RGB", (4, 4)).save(data / "later.bin", format="PNG")
    names, unreadable, _ = scan(data, looked_at)
    assert "a/broken.png" in names
    assert "b/dangling.png" in names
    assert unreadable == []


def test_a_folder_that_changed_a_moment_ago_is_read_again(
    data: Path, looked_at: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_index, "SETTLED_NS", 2_000_000_000)
    first = scan(data, looked_at)
    assert scan(data, looked_at) == first
    assert len(looked_at) == 7


def test_a_broken_or_forbidden_cache_is_no_error(
    data: Path, looked_at: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = scan(data, looked_at)
    (kept,) = (tmp_path / "cache").rglob("*.json")
    for text in ("", "{", "[]", '{"version": 1}', kept.read_text()[:200], kept.read_text().replace("pillow", "other")):
        kept.write_text(text)
        assert scan(data, looked_at) == first
        assert len(looked_at) == 7
    monkeypatch.setenv("MAECLI_CACHE", str(data / "notes.txt"))
    assert scan(data, looked_at) == first


def test_a_small_scan_leaves_no_file_behind(
    data: Path, looked_at: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_index, "WORTH_KEEPING", 5_000)
    scan(data, looked_at)
    assert not (tmp_path / "cache").exists()


def test_an_archive_is_walked_once(
    data: Path, looked_at: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(data, "data")
    first = summary(scan_images([path]), path)
    with monkeypatch.context() as patch:
        patch.setattr("mae.data.sources.scan.list_archive", lambda path, on_file: pytest.fail("walked again"))
        assert summary(scan_images([path]), path) == first
    with tarfile.open(path, "a") as tar:
        tar.add(data / "3.png", "more.png")
    assert summary(scan_images([path]), path)[0] == [*first[0], "more.png"]
