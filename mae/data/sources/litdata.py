"""Data sets written by litdata's ``optimize``, read by their documented format without the litdata package."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from mae.data.decoding.formats import ImageError
from mae.data.sources.archive import ArchiveListing, ArchiveSource, open_archive
from mae.data.sources.parquet import USUAL_NAMES
from mae.errors import DataError
from mae.io.text import shown

AGAIN = "write the data set again with litdata.optimize"


def is_litdata(folder: Path) -> bool:
    """Whether a folder has an index and chunks with litdata's file names."""
    return (folder / "index.json").is_file() and any(folder.glob("chunk-*.bin"))


class LitDataSource(ArchiveSource):
    """The images of a litdata data set, with litdata's item numbers.

    Raises:
        DataError: The index or a chunk is damaged, or the items have no image field that can be read.
    """

    def __init__(self, folder: Path) -> None:
        index, found, first = folder / "index.json", [], 0
        try:
            content = json.loads(index.read_bytes())
            chunks = [(folder / Path(one["filename"]).name, int(one["chunk_size"])) for one in content["chunks"]]
            self._kinds, self._field = _image_field(folder, content["config"])
        except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise DataError(f"{shown(index)} is not a litdata index ({shown(repr(error))})", hint=AGAIN) from None
        for path, items in chunks:
            with open_archive(path) as file:  # a chunk begins with the number of items, their offsets and their end
                whole = int.from_bytes(file.read(4), "little") == items and 4 * items < path.stat().st_size
                table = file.read(4 * (items + 1)) if whole else b""
            places = np.frombuffer(table[: len(table) // 4 * 4], "<u4").astype(np.int64)
            if len(places) != items + 1 or places[-1] > path.stat().st_size or (np.diff(places) < 0).any():
                raise DataError(f"{shown(path)} is damaged: {items:,} items should be in it", hint=AGAIN)
            if items and places[-1] == places[0]:
                raise DataError(f"{shown(path)}: its items are an Arrow table", hint="write litdata.Image, not bytes")
            names, first = b"".join(b"item %d\0" % (first + number) for number in range(items)), first + items
            starts, sizes = tuple(places[:-1].tolist()), tuple(np.diff(places).tolist())
            found.append((path, ArchiveListing(names, starts, sizes, (-1,) * items)))
        super().__init__(found)

    def name(self, index: int) -> Path:
        """Path of the data set's folder, with the number of the item."""
        return super().name(index).parents[1] / f"item {index}"

    def open(self, index: int) -> IO[bytes]:
        """Read an image's bytes; raw pixels are returned as an uncompressed TIFF."""
        item, head = super().open(index).read(), 4 * len(self._kinds)  # an item is the sizes of its fields, then these
        try:
            sizes = struct.unpack_from(f"<{len(self._kinds)}I", item)
            if head + sum(sizes) != len(item):
                raise ValueError("the sizes of its fields do not match its size")
            data = item[(start := head + sum(sizes[: self._field])) : start + sizes[self._field]]
            return io.BytesIO(_as_tiff(data) if self._kinds[self._field] == "pil" else data)
        except (ValueError, KeyError, OSError, struct.error) as error:
            raise ImageError(self.name(index), f"is damaged ({shown(str(error))})") from None


def _image_field(folder: Path, config: dict[str, Any]) -> tuple[list[str], int]:
    """The types of an item's fields, and the index of the image field."""
    for what in ("compression", "encryption"):
        if config.get(what):
            raise DataError(f"{shown(folder)}: litdata chunks with {what} are not read", hint=f"{AGAIN}, without it")
    kinds = [str(kind).partition(":")[0] for kind in config["data_format"] or ()]
    sure = [place for place, kind in enumerate(kinds) if kind in ("jpeg", "image", "pil")]
    found = sure or [place for place, kind in enumerate(kinds) if kind in ("bytes", "file")]
    tree = json.loads(config["data_spec"])[1] if len(found) > 1 else {}
    names = json.loads(tree["context"]) if str(tree.get("type")).endswith("dict") else kinds
    if len(found) > 1 and len(names) == len(kinds):
        found = [place for place in found if names[place] in USUAL_NAMES] or found
    if len(found) != 1:
        what = f"{'several images' if found else 'no image'} in each item ({', '.join(map(str, names))})"
        hint = "call the one with the images 'image'" if found else "jpeg, image, pil, bytes and file are read"
        raise DataError(f"{shown(folder)}: {shown(what)}", hint=hint)
    return kinds, found[0]


def _as_tiff(data: bytes) -> bytes:
    """Convert litdata's raw pixels (width, height, mode, pixels) to a TIFF file."""
    (width, height, length), file = struct.unpack_from("<III", data), io.BytesIO()
    mode, pixels = data[12:][:length].decode(), data[12 + length :]
    if mode == "P" or width * height > 8 * len(pixels):
        raise ValueError("litdata does not keep palettes" if mode == "P" else "pixels are missing")
    Image.frombytes(mode, (width, height), pixels).save(file, "TIFF")
    return file.getvalue()
