"""Archives and tables give the same as a folder with the same images."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import unittest.mock
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mae.data.augment import Augmentation
from mae.data.dataset import ImageDataset
from mae.data.decoding.formats import ImageError
from mae.data.loader import make_loader
from mae.data.sampler import EpochBatches
from mae.data.sources.archive import ArchiveSource, list_archive
from mae.data.sources.base import ImageSource, JoinedSource
from mae.data.sources.scan import expand_braces, scan_images
from mae.errors import DataError


def image_bytes(number: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (20, 24 + number, 3), np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


CONTENT = {f"class_{number % 2}/{number:04d}.png": image_bytes(number) for number in range(9)}
EXTRAS = {"class_0/0000.cls": b"7", ".hidden.png": image_bytes(1), "__MACOSX/x.png": image_bytes(1)}
BAD = {"class_0/empty.png": b"", "class_1/page.jpg": b"<html>"}


def write_folder(path: Path, content: dict[str, bytes]) -> Path:
    for name, data in content.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def write_tar(path: Path, content: dict[str, bytes], kind: str = "w") -> Path:
    with tarfile.open(path, kind) as tar:  # type: ignore[call-overload]
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_zip(path: Path, content: dict[str, bytes], packed: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", packed) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def write_parquet(path: Path, content: dict[str, bytes], rows: int = 4, *, struct: bool = True) -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    values = [{"bytes": data, "path": name} for name, data in content.items()] if struct else list(content.values())
    table = pa.table({"label": list(range(len(values))), "image": values})
    parquet.write_table(table, path, row_group_size=rows)
    return path


def contents(source: ImageSource) -> list[bytes]:
    found = []
    for index in range(len(source)):
        with source.open(index) as file:
            found.append(file.read())
    return found


@pytest.mark.parametrize("kind", ["tar", "stored.zip", "packed.zip", "parquet", "plain.parquet"])
def test_every_source_holds_the_images(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"data.{kind}"
    if kind.endswith("parquet"):
        write_parquet(path, CONTENT, struct=kind == "parquet")
    elif kind == "tar":
        write_tar(path, CONTENT | EXTRAS)
    else:
        write_zip(path, CONTENT | EXTRAS, zipfile.ZIP_STORED if "stored" in kind else zipfile.ZIP_DEFLATED)
    source = scan_images([path]).images
    assert contents(source) == list(CONTENT.values())
    name = f"{path}/row 5" if kind.endswith("parquet") else f"{path}/class_1/0005.png"
    assert str(source.name(5)) == name
    assert source.load(3, 3).size == (27, 20)
    assert contents(pickle.loads(pickle.dumps(source))) == contents(source)


@pytest.mark.parametrize("suffix", ["tar", "zip"])
def test_what_is_no_image_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data.{suffix}"
    (write_tar if suffix == "tar" else write_zip)(path, CONTENT | EXTRAS | BAD | {"/root/page.png": b"<html>"})
    scan = scan_images([path])
    assert len(scan.images) == 9
    assert scan.others == 1
    assert {str(bad.path): bad.reason for bad in scan.unreadable} == {
        f"{path}/class_0/empty.png": "is empty (0 bytes)",
        f"{path}/class_1/page.jpg": "is a web page saved under an image's name",
        f"{path}/root/page.png": "is a web page saved under an image's name",
    }


def test_shards_by_braces_are_one_source_in_order(tmp_path: Path) -> None:
    names = list(CONTENT)
    for shard in range(3):
        part = names[shard * 3 : shard * 3 + 3]
        write_tar(tmp_path / f"shard-{shard:03d}.tar", {name: CONTENT[name] for name in part})
    source = scan_images([tmp_path / "shard-{000..002}.tar"]).images
    assert contents(source) == list(CONTENT.values())
    assert expand_braces(Path("a{b,c}{1..2}")) == [Path(name) for name in ("ab1", "ab2", "ac1", "ac2")]
    (tmp_path / "odd{1,2}").mkdir()
    assert expand_braces(tmp_path / "odd{1,2}") == [tmp_path / "odd{1,2}"]
    with pytest.raises(DataError, match=r"shard-003\.tar: no such"):
        scan_images([tmp_path / "shard-{000..003}.tar"])


def test_different_sources_join(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder", CONTENT)
    tar = write_tar(tmp_path / "b.tar", CONTENT)
    table = write_parquet(tmp_path / "c.parquet", CONTENT)
    source = scan_images([table, folder, tar]).images
    assert isinstance(source, JoinedSource)
    assert sorted(contents(source)) == sorted(list(CONTENT.values()) * 3)
    assert sum(source.groups) == len(source) == 27


def test_batches_from_a_tar_are_those_of_its_folder(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder", dict(sorted(CONTENT.items())))
    tar = write_tar(tmp_path / "b.tar", dict(sorted(CONTENT.items())))
    found = []
    for path, workers in ((folder, 0), (tar, 0), (tar, 2)):
        source = scan_images([path]).images
        dataset = ImageDataset(source, Augmentation((16, 16), 3), seed=1)
        loader = make_loader(dataset, EpochBatches(9, 4, epochs=2, seed=1), workers=workers)
        found.append(torch.cat([batch.images for batch in loader]))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_damaged_archives_are_met_with_one_line(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar", CONTENT).read_bytes()
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole[: len(whole) // 2])
    scan = scan_images([cut])
    assert 0 < len(scan.images) < 9
    assert [bad.reason.split(":")[0] for bad in scan.unreadable] == ["is cut off", "breaks off"]
    write_tar(tmp_path / "squeezed.tar", CONTENT, "w:gz")
    (tmp_path / "text.tar").write_text("words " * 500)
    (tmp_path / "text.zip").write_text("words " * 500)
    (tmp_path / "empty.tar").touch()
    for name, words in (
        ("squeezed.tar", "is a compressed tar"), ("text.tar", "is not a tar file"),
        ("text.zip", "is not a readable zip"), ("empty.tar", "is not a tar file"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=words):
            scan_images([tmp_path / name])


def test_a_flipped_bit_in_a_zip_is_found(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a.png": image_bytes(0), "b.png": image_bytes(1)})
    data = bytearray(path.read_bytes())
    data[300] ^= 1
    path.write_bytes(data)
    source = ArchiveSource([(path, list_archive(path, lambda: None))])
    with pytest.raises(ImageError, match=r"a\.zip/a\.png: cannot be decoded"):
        contents(source)


def test_an_archive_that_changed_is_not_read_at_the_old_places(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", CONTENT)
    source = scan_images([path]).images
    write_tar(path, dict(reversed(CONTENT.items())) | EXTRAS)
    with pytest.raises(ImageError, match="has changed"):
        source.open(0)


def test_a_table_that_changed_is_not_read_as_if_its_rows_were_the_old_ones(tmp_path: Path) -> None:
    table = write_parquet(tmp_path / "a.parquet", CONTENT)
    source = scan_images([table]).images
    assert source.open(0).read() == CONTENT["class_0/0000.png"]
    write_parquet(table, dict(reversed(CONTENT.items())))
    assert source.open(1).read() == CONTENT["class_1/0001.png"]  # of a row group that was read before
    with pytest.raises(ImageError, match=r"a\.parquet/row 8: .*a\.parquet: has changed since its images were found"):
        source.open(8)


def test_a_folder_of_archives_says_how_to_name_them(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", CONTENT)
    with pytest.raises(DataError, match="no image in") as caught:
        scan_images([tmp_path])
    assert caught.value.hint == f"archives are read when they are named: {tmp_path}/*.tar"


def test_tables_without_images_and_rows_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    parquet.write_table(pa.table({"a": [1], "b": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no column of images: none among a, b"):
        scan_images([tmp_path / "a.parquet"])
    parquet.write_table(pa.table({"a": [b"1"], "b": [b"2"]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"several columns of bytes \(a, b\)"):
        scan_images([tmp_path / "b.parquet"])
    parquet.write_table(pa.table({"photo.png": [image_bytes(0), None]}), tmp_path / "c.parquet")
    source = scan_images([tmp_path / "c.parquet"]).images
    assert source.load(0, 3).size == (24, 20)
    with pytest.raises(ImageError, match=r"row 1: holds no image"):
        source.load(1, 3)
    with monkeypatch.context() as patch:  # as for a struct of over 2 GB
        reason = unittest.mock.Mock(side_effect=pa.ArrowNotImplementedError("Nested data conversions"))
        patch.setattr(parquet.ParquetFile, "read_row_group", reason)
        with pytest.raises(ImageError, match=r"row 0: cannot be read \(Nested data conversions\)"):
            scan_images([tmp_path / "c.parquet"]).images.load(0, 3)
    (tmp_path / "d.parquet").write_text("words")
    with pytest.raises(DataError, match="is not a readable Parquet file"):
        scan_images([tmp_path / "d.parquet"])


def test_a_zip_whose_directory_lies_before_the_file(tmp_path: Path) -> None:
    data = bytearray(write_zip(tmp_path / "data.zip", CONTENT).read_bytes())
    end = data.rindex(b"PK\5\6")
    stated = int.from_bytes(data[end + 16 : end + 20], "little")
    data[end + 16 : end + 20] = (stated + 100).to_bytes(4, "little")
    (tmp_path / "data.zip").write_bytes(data)
    listing = list_archive(tmp_path / "data.zip", lambda: None)
    assert b"is not where the zip file says" in [reason.encode() for _, reason in listing.unreadable]


@pytest.mark.parametrize("offset", [2**63 - 7, 2**64 - 3])
def test_a_zip_member_at_an_impossible_place(tmp_path: Path, offset: int) -> None:
    path = write_zip(tmp_path / "data.zip", CONTENT)
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo("last.png")
        info.extra = struct.pack("<HHQ", 1, 8, offset)
        archive.writestr(info, image_bytes(0))
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\1\2")
    data[entry + 42 : entry + 46] = b"\xff" * 4  # the extra field holds the offset
    path.write_bytes(data)
    scan = scan_images([path])
    assert len(scan.images) == len(CONTENT)
    assert [(bad.path.name, bad.reason) for bad in scan.unreadable] == [("last.png", "is not where the zip file says")]


def test_a_zip_member_without_a_name_is_passed_over(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "data.zip", CONTENT | {"??": b"nameless"})
    path.write_bytes(path.read_bytes().replace(b"??", b"\0?"))  # a name ends at its first zero
    assert len(list_archive(path, lambda: None).offsets) == len(CONTENT)


def test_a_tables_row_is_named_without_a_walk_through_its_groups(tmp_path: Path) -> None:
    """Every image of an epoch is named, and a table of a million images has ten thousand row groups."""
    paths = [write_parquet(tmp_path / name, CONTENT, rows=1) for name in ("a.parquet", "b.parquet")]
    source = scan_images(paths).images
    walked = 0

    class Counted(list[tuple[int, int, int]]):
        def __iter__(self) -> Iterator[tuple[int, int, int]]:
            nonlocal walked
            walked += 1
            return super().__iter__()

    source._places = Counted(source._places)  # type: ignore[attr-defined]
    wanted = [path / f"row {row}" for path in paths for row in range(len(CONTENT))]
    assert [source.name(index) for index in range(len(source))] == wanted
    assert walked == 0


def test_a_name_in_a_tar_ends_at_its_first_zero(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "data.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for number, name in enumerate(("cat/a.png", "cat/b\0x.png", "dog/c.png")):
            info = tarfile.TarInfo()
            info.size, info.pax_headers = len(image_bytes(number)), {"path": name}
            tar.addfile(info, io.BytesIO(image_bytes(number)))
    images = scan_images([tmp_path / "data.tar"]).images
    assert [str(images.name(index).relative_to(tmp_path / "data.tar")) for index in range(3)] == [
        "cat/a.png",
        "cat/b",
        "dog/c.png",
    ]


def test_hard_links_in_a_tar_are_images_too(tmp_path: Path) -> None:
    """A tar holds files that share their bytes once, and links to the first."""
    folder = write_folder(tmp_path / "photos", {"a.png": image_bytes(1), "c.png": image_bytes(2), "n.txt": b"text"})
    for name, target in (("b.png", "a.png"), ("d.png", "c.png"), ("e.png", "a.png"), ("o.txt", "n.txt")):
        (folder / name).hardlink_to(folder / target)
    path = tmp_path / "photos.tar"
    with tarfile.open(path, "w") as tar:
        for file in sorted(folder.iterdir()):
            tar.add(file, file.name)
    scan = scan_images([path])
    assert [scan.images.name(index).name for index in range(5)] == ["a.png", "b.png", "c.png", "d.png", "e.png"]
    assert scan.others == 2
    first, second = image_bytes(1), image_bytes(2)
    assert contents(scan.images) == [first, first, second, second, first]
