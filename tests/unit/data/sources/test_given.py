"""Paths on the command line: all images that are named, and the first few of each folder or archive."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mae.data.decoding.formats import ImageError
from mae.data.sources.given import GivenImages
from mae.errors import ConfigError, DataError
from mae.io.download import no_downloads
from tests.processes import finish, fork
from tests.unit.data.sources.test_base import image_bytes, write_folder, write_parquet, write_tar, write_zip

CONTENT = {f"{number:02d}.png": image_bytes(number) for number in range(12)}
BROKEN = image_bytes(0)[:200]  # begins well, so that a scan takes it for an image


def names(given: GivenImages) -> list[str]:
    return [path.name for path, _ in given.decode(3)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "photos", CONTENT)


@pytest.mark.parametrize("write", [write_tar, write_zip, write_folder, write_parquet], ids=lambda write: write.__name__)
def test_the_first_few_of_what_holds_many(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write(tmp_path / f"photos.{write.__name__.removeprefix('write_')}", CONTENT)
    given = GivenImages([path], 5)
    assert len(given) == 5
    images = list(given.decode(3))
    assert [image.size for _, image in images] == [(24 + number, 20) for number in range(5)]
    assert given.notes == [f"{path}: 5 of 12 images; --limit 12 shows all"]
    assert (given.folders if path.is_dir() else given.files) == [path]
    everything = GivenImages([path], 12)
    assert len(list(everything.decode(1))) == 12
    assert everything.notes == []


def test_names_are_all_taken_in_their_order(folder: Path, tmp_path: Path) -> None:
    shards = [write_tar(tmp_path / f"shard-{number}.tar", {f"{number}.png": CONTENT["00.png"]}) for number in range(4)]
    given = GivenImages([folder / "07.png", tmp_path / "shard-{0..3}.tar", folder / "{03,01}.png", folder], 2)
    assert names(given) == ["07.png", "0.png", "1.png", "03.png", "01.png", "00.png", "01.png"]
    assert len(given) == 7
    assert [note.rsplit(": ", 1)[1] for note in given.notes] == [
        "2 of 4 images; --limit 4 shows all",
        "2 of 12 images; --limit 12 shows all",
    ]
    assert given.files == [folder / "07.png", *shards, folder / "03.png", folder / "01.png"]
    assert given.folders == [folder]


def test_the_next_takes_the_place_of_a_broken_one(tmp_path: Path) -> None:
    write_folder(tmp_path, CONTENT | {"00.png": BROKEN, "02.png": BROKEN, "page.jpg": b"<html>"})
    given = GivenImages([tmp_path], 3)
    assert names(given) == ["01.png", "03.png", "04.png"]
    assert [path.name for path, _ in given.skipped] == ["page.jpg", "00.png", "02.png"]
    with pytest.raises(ImageError, match=r"00\.png: "):
        names(GivenImages([tmp_path / "00.png"], 3))


def test_a_folder_of_broken_ones_is_not_walked_to_its_end(tmp_path: Path) -> None:
    write_folder(tmp_path, {f"{number:03d}.png": BROKEN for number in range(50)})
    given = GivenImages([tmp_path], 2)
    assert names(given) == []
    assert len(given.skipped) == 20


def test_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for missing in ("none.tar", "none.jpg", "none.parquet", "none", "x" * 300):
        with pytest.raises(DataError, match=r"no such|too long"):
            names(GivenImages([tmp_path / missing], 8))
    with pytest.raises(DataError, match="it is empty"):
        GivenImages([tmp_path / "empty"], 8)
    (tmp_path / "no.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="is not a readable zip file"):
        GivenImages([tmp_path / "no.zip"], 8)
    with no_downloads(), pytest.raises(DataError, match=r"downloads are disabled \(--offline\)"):
        GivenImages([Path("https://host/never-fetched.tar")], 8)


class _Piped(io.TextIOWrapper):
    def isatty(self) -> bool:
        return False


def piped(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", _Piped(io.BytesIO(content)))


def test_standard_input(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    piped(monkeypatch, CONTENT["05.png"])
    given = GivenImages([folder / "01.png", Path("-")], 8)
    assert [(path.name, image.width) for path, image in given.decode(3)] == [("01.png", 25), ("stdin", 29)]
    for content, reason in ((b"", "is empty"), (b"hello", "is not an image"), (BROKEN, "stdin: ")):
        piped(monkeypatch, content)
        with pytest.raises(ImageError, match=reason):
            names(GivenImages([Path("-")], 8))
    with pytest.raises(ConfigError, match="can be read once"):
        GivenImages([Path("-"), Path("-")], 8)


def test_no_more_of_standard_input_is_kept_than_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mae.data.sources.given.MAX_FILE_BYTES", 100)
    piped(monkeypatch, CONTENT["00.png"])
    with pytest.raises(ImageError, match="is too large"):
        names(GivenImages([Path("-")], 8))


def test_a_folder_for_standard_input(tmp_path: Path) -> None:
    done = finish(fork("-c", _READS, tmp_path))
    assert done.stdout == "stdin: is a folder\n"


_READS = """
import os, sys
os.dup2(os.open(sys.argv[1], os.O_RDONLY), 0)
from pathlib import Path
from mae.data.sources.given import GivenImages
try:
    list(GivenImages([Path("-")], 8).decode(3))
except Exception as error:
    print(error)
"""


@pytest.mark.parametrize("stdin", ["a terminal", "closed"])
def test_nobody_waits_for_a_terminal(stdin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    streams: dict[str, Any] = {"a terminal": Terminal(), "closed": None}
    monkeypatch.setattr(sys, "stdin", streams[stdin])
    with pytest.raises(ConfigError, match="nothing is piped into it") as caught:
        GivenImages([Path("-")], 8)
    assert "< cat.jpg" in (caught.value.hint or "")
