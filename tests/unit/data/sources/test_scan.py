"""Images are found by content in any folder tree; other files are counted or named."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mae.data.sources import scan
from mae.data.sources.folder import Listing
from mae.data.sources.scan import scan_images
from mae.errors import DataError
from tests.unit.data.sources.test_base import image_bytes, write_parquet


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path, format="PNG")
    return path


def test_any_tree_with_hidden_and_other_files(tmp_path: Path) -> None:
    wanted = [image(tmp_path / name) for name in ("a.png", "deep/er/b.jpg", "class_1/no_suffix")]
    image(tmp_path / ".hidden.png")
    image(tmp_path / ".cache/c.png")
    (tmp_path / "notes.txt").write_text("words")
    (tmp_path / "broken.jpg").write_bytes(b"")
    scan = scan_images([tmp_path])
    assert set(scan.images) == set(wanted)
    assert [bad.path.name for bad in scan.unreadable] == ["broken.jpg"]
    assert "0 bytes" in scan.unreadable[0].reason
    assert scan.others == 1


def test_several_sources_and_overlaps_count_once(tmp_path: Path) -> None:
    first, second = image(tmp_path / "x/a.png"), image(tmp_path / "y/b.png")
    assert tuple(scan_images([first, tmp_path / "x", tmp_path / "y", first]).images) == (first, second)


def test_many_single_images_are_looked_at_once_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a shell's ``photos/*.png`` gives them; each is not searched for among all others."""
    paths = [image(tmp_path / f"{number}.png") for number in range(20)]
    searched: list[Listing] = []
    names = scan._names
    monkeypatch.setattr(scan, "_names", lambda listing: [searched.append(listing), *names(listing)][1:])
    assert tuple(scan_images([*paths, *paths]).images) == tuple(paths)
    assert not searched
    (tmp_path / "empty.jpg").write_bytes(b"")
    found = scan_images([*paths, tmp_path, tmp_path / "empty.jpg"])
    assert (len(found.images), len(found.unreadable), len(searched)) == (20, 1, 1)


def test_tables_that_are_given_twice_count_once(tmp_path: Path) -> None:
    table = write_parquet(tmp_path / "a.PARQUET", {"a.png": image_bytes(0), "b.png": image_bytes(1)})
    found = scan_images([table, table])
    assert (len(found.images), found.others) == (2, 0)


def test_circular_links_end(tmp_path: Path) -> None:
    path = image(tmp_path / "x/a.png")
    (tmp_path / "x/loop").symlink_to(tmp_path, target_is_directory=True)
    assert path in scan_images([tmp_path]).images
    assert len(scan_images([tmp_path]).images) == 1


def test_empty_and_missing_folders_are_data_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no image in .*: it is empty"):
        scan_images([tmp_path])
    (tmp_path / "folder" / ".git").mkdir(parents=True)
    with pytest.raises(DataError, match="only hidden files, which are not read"):
        scan_images([tmp_path])
    (tmp_path / "a.txt").write_text("words")
    with pytest.raises(DataError, match="a file of another kind"):
        scan_images([tmp_path])
    (tmp_path / "b.txt").write_text("words")
    with pytest.raises(DataError, match="2 files of other kinds"):
        scan_images([tmp_path])
    with pytest.raises(DataError, match=r"none\.jpg: no such file$") as error:
        scan_images([tmp_path / "none.jpg"])
    assert error.value.hint == "give an existing folder, archive or image"
    with pytest.raises(DataError, match="no such folder"):
        scan_images([tmp_path / "none"])
    packed = tmp_path / "shard.tar.gz"
    packed.write_bytes(b"\x1f\x8b")
    with pytest.raises(DataError, match="a file of another kind") as error:
        scan_images([packed])
    assert error.value.hint == f"unpack {packed}: folders, .tar, .zip and .parquet files are read"


def test_progress_is_told(tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / f"{number}.txt").touch()
    image(tmp_path / "a.png")
    seen: list[int] = []
    scan_images([tmp_path], seen.append)
    assert seen == [256]


def write_litdata(folder: Path, items: int, *, count: int | None = None) -> Path:
    """A chunk in litdata's documented format: number of items, offset of each and of the end, items."""
    folder.mkdir()
    images = [image_bytes(number) for number in range(items)]
    records = [struct.pack("<I", len(data)) + data for data in images]
    ends = np.cumsum([4 * (items + 2), *map(len, records)])
    count = items if count is None else count
    (folder / "chunk-0-0.bin").write_bytes(struct.pack(f"<I{items + 1}I", count, *ends) + b"".join(records))
    config = {"data_format": ["bytes"], "compression": None, "encryption": None, "data_spec": None}
    index = {"chunks": [{"filename": "chunk-0-0.bin", "chunk_size": count}], "config": config}
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def test_a_data_set_of_litdata_without_the_package(tmp_path: Path) -> None:
    found = scan_images([write_litdata(tmp_path / "set", 3)]).images
    assert [found.open(number).read() for number in range(3)] == [image_bytes(number) for number in range(3)]
    with pytest.raises(DataError, match=r"chunk-0-0\.bin is damaged: 4,294,967,295 items should be in it"):
        scan_images([write_litdata(tmp_path / "many", 3, count=2**32 - 1)])


def test_images_beside_another_programs_index_are_a_folder_of_images(tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(image_bytes(1))
    (tmp_path / "index.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"weights")
    assert len(scan_images([tmp_path]).images) == 1
