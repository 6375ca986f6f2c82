"""Data sets written by litdata, and damaged or unsupported ones."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what litdata imports
    litdata = pytest.importorskip("litdata")
    writer = pytest.importorskip("litdata.streaming.writer")

from mae.data.decoding.formats import ImageError
from mae.data.sources.scan import scan_images
from mae.errors import DataError
from mae.evaluation.splits import read_labels
from mae.training.pretrain import pretrain
from tests.unit.data.sources.test_base import contents, image_bytes
from tests.unit.training.small import logged, make_models_small, same, small_config, stop_after, weights

JPEGS = [image_bytes(number, "JPEG") for number in range(11)]
PNGS = [image_bytes(number) for number in range(11)]
ARRAYS = [np.random.default_rng(number).integers(0, 256, (20, 24 + number, 3), np.uint8) for number in range(11)]


def write(folder: Path, items: list[Any]) -> Path:
    """Write several chunks, as ``litdata.optimize`` does, in this process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chunks = writer.BinaryWriter(str(folder), chunk_size=4)
        for number, item in enumerate(items):
            chunks[number] = item
        chunks.done()
        chunks.merge(1)
    return folder


def jpeg_files(folder: Path) -> list[Image.Image]:
    folder.mkdir()
    for number, data in enumerate(JPEGS):
        (folder / f"{number}.jpg").write_bytes(data)
    return [Image.open(folder / f"{number}.jpg") for number in range(len(JPEGS))]


@pytest.mark.parametrize("kind", ["alone", "tuple", "dict", "two images"])
def test_encoded_images_are_read_as_they_are(tmp_path: Path, kind: str) -> None:
    images = jpeg_files(tmp_path / "jpegs")
    makers: dict[str, Any] = {
        "alone": lambda number: images[number],
        "tuple": lambda number: (number, images[number]),
        "dict": lambda number: {"class": f"name {number}", "image": images[number], "label": number},
        "two images": lambda number: {
            "mask": litdata.Image(bytes=PNGS[0]),
            "image": litdata.Image(bytes=JPEGS[number]),
        },
    }
    folder = write(tmp_path / "set", [makers[kind](number) for number in range(11)])
    assert len([*folder.glob("*.bin")]) == 3
    for image in images:
        image.close()
    source = scan_images([folder]).images
    assert contents(source) == JPEGS
    assert source.name(10) == folder / "item 10"
    assert source.load(3, 3).size == (27, 20)
    assert contents(pickle.loads(pickle.dumps(source))) == JPEGS
    assert not read_labels(source, [folder]).classes  # a chunk is no class


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "1", "CMYK", "I;16"])
def test_pixels_are_those_that_were_written(tmp_path: Path, mode: str) -> None:
    made = [Image.fromarray(array[..., 0].astype(np.uint16) * 200 if mode == "I;16" else array) for array in ARRAYS]
    made = [image if mode == "I;16" else image.convert(mode) for image in made]
    source = scan_images([write(tmp_path / "set", [(image, 7) for image in made])]).images
    for number, image in enumerate(made):
        with source.open(number) as file, Image.open(file) as read:
            assert (read.mode, read.size, read.tobytes()) == (mode, image.size, image.tobytes())
    assert source.load(0, 3).mode == "RGB"


def test_training_is_the_same_as_from_files_and_goes_on_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_models_small(monkeypatch)
    folder = tmp_path / "files"
    folder.mkdir()
    for number, data in enumerate(PNGS):
        (folder / f"item {number:02d}.png").write_bytes(data)
    whole = small_config(folder, tmp_path / "whole")
    pretrain(whole)
    written = write(
        tmp_path / "set", [{"x": litdata.Image(bytes=data), "y": number} for number, data in enumerate(PNGS)]
    )
    parted = dataclasses.replace(whole, data=(written,), out=tmp_path / "parted")
    pretrain(parted, *stop_after(4))
    pretrain(dataclasses.replace(parted, resume=parted.out))
    assert same(weights(whole.out), weights(parted.out))
    assert [line.get("loss") for line in logged(whole.out)] == [line.get("loss") for line in logged(parted.out)]
    assert "litdata.streaming" in sys.modules  # the next test checks that our code does not import it


def test_the_package_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "set", PNGS)
    for name in [name for name in sys.modules if name.partition(".")[0] == "litdata"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert contents(scan_images([folder]).images) == PNGS


def test_an_item_that_is_no_image_is_named(tmp_path: Path) -> None:
    source = scan_images([write(tmp_path / "set", [PNGS[0], b"<html>", b"", PNGS[1]])]).images
    assert source.load(3, 3).size == (25, 20)
    for index in (1, 2):
        with pytest.raises(ImageError, match=f"set/item {index}"):
            source.load(index, 3)
    with pytest.raises(DataError, match="its items are an Arrow table") as caught:
        scan_images([write(tmp_path / "rows", [{"image": PNGS[0], "y": 1}])])
    assert "litdata.Image" in str(caught.value.hint)
    palette = scan_images([write(tmp_path / "palette", [Image.new("P", (9, 9))])]).images
    with pytest.raises(ImageError, match="litdata does not keep palettes"):
        palette.load(0, 3)


def change(**values: Any) -> Any:
    def changed(folder: Path) -> None:
        index = json.loads((folder / "index.json").read_text())
        index["config"] |= values
        (folder / "index.json").write_text(json.dumps(index))

    return changed


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda folder: (folder / "index.json").write_text("{"), "index.json is not a litdata index"),
        (lambda folder: (folder / "index.json").write_text("[" * 99999), "index.json is not a litdata index"),
        (lambda folder: (folder / "index.json").write_text('{"chunks": [7]}'), "index.json is not a litdata index"),
        (lambda folder: (folder / "chunk-0-1.bin").unlink(), "chunk-0-1.bin"),
        (lambda folder: (folder / "chunk-0-1.bin").write_bytes(b""), "chunk-0-1.bin is damaged: 4 items should be"),
        (lambda folder: (folder / "chunk-0-1.bin").write_bytes((folder / "chunk-0-2.bin").read_bytes()),
         "chunk-0-1.bin is damaged: 4 items should be"),
        (lambda folder: (folder / "chunk-0-1.bin").write_bytes((folder / "chunk-0-1.bin").read_bytes()[:-9]),
         "chunk-0-1.bin is damaged: 4 items should be"),
        (change(compression="zstd"), "chunks with compression are not read"),
        (change(encryption={"algorithm": "fernet"}), "chunks with encryption are not read"),
        (change(data_format=["int", "str"]), "no image in each item (int, str)"),
        (change(data_format=["jpeg", "jpeg"]), "several images in each item (x, y)"),
        (change(data_format=None), "no image in each item"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(tmp_path: Path, harm: Any, words: str) -> None:
    folder = write(
        tmp_path / "set", [{"x": litdata.Image(bytes=data), "y": number} for number, data in enumerate(PNGS)]
    )
    harm(folder)
    with pytest.raises(DataError) as caught:
        scan_images([folder])
    assert words in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint or "unlink" in words or "chunk-0-1.bin" in words


def test_damage_within_a_chunk_is_of_its_item(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", [(data, 7) for data in PNGS])
    chunk = folder / "chunk-0-0.bin"
    data = bytearray(chunk.read_bytes())
    place = int.from_bytes(data[8:12], "little")  # where the second item begins
    data[place : place + 4] = (2**32 - 1).to_bytes(4, "little")
    chunk.write_bytes(data)
    source = scan_images([folder]).images
    with pytest.raises(ImageError, match="item 1: is damaged"):
        source.open(1)
    assert source.open(0).read() == PNGS[0]


def test_a_folder_of_data_sets_says_which_to_name(tmp_path: Path) -> None:
    write(tmp_path / "all" / "train", PNGS)
    with pytest.raises(DataError) as caught:
        scan_images([tmp_path / "all"])
    assert caught.value.hint == f"a litdata data set is read when its own folder is named: {tmp_path}/all/train"
    both = scan_images([tmp_path / "all" / "train", tmp_path / "all" / "train"])
    assert len(both.images) == 11
    assert both.looked_into == (tmp_path / "all" / "train",)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "index.json").write_text("{}")
    (tmp_path / "plain" / "x.png").write_bytes(PNGS[0])
    assert len(scan_images([tmp_path / "plain"]).images) == 1


def test_an_image_is_no_larger_than_its_bytes(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", [Image.new("L", (9, 9))])
    chunk = folder / "chunk-0-0.bin"
    data = bytearray(chunk.read_bytes())
    start = int.from_bytes(data[4:8], "little") + 4
    data[start : start + 8] = io.BytesIO(np.array([60000, 60000], "<u4").tobytes()).read()
    chunk.write_bytes(data)
    with pytest.raises(ImageError, match="pixels are missing"):
        scan_images([folder]).images.load(0, 3)
