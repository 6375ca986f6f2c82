"""Features on disk in parts that are written atomically, so that existing parts need not be computed again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from mae.data.sources.base import ImageSource
from mae.errors import ConfigError, DataError
from mae.io.files import write_atomically
from mae.io.text import shown

VERSION = 1
MOST_PART_IMAGES = 1024  # images whose features are lost if a process is killed
MOST_PART_BYTES = 64 * 2**20
_SETTINGS = "settings.json"


def part_images(row_bytes: int) -> int:
    """Number of images per part, given the bytes per image."""
    return max(1, min(MOST_PART_IMAGES, MOST_PART_BYTES // max(1, row_bytes)))


class PartInfo(NamedTuple):
    """Contents of a part on the disk.

    Attributes:
        images: Readable images of the part; the number of rows of each array.
        unreadable: (index, reason) of the part's unreadable images.
    """

    images: int
    unreadable: tuple[tuple[int, str], ...]


class PartStore:
    """Arrays with one row per image of a source, stored in a folder.

    Args:
        folder: The folder; created by ``open``.
        settings: Everything the arrays depend on; parts with other settings are refused.
        images: Number of images of the source.
        part_images: Number of images per part.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], images: int, part_images: int) -> None:
        self.folder = folder
        self.images = images
        self.part_images = part_images
        self.settings = {"version": VERSION, "images": images, "part_images": self.part_images, **settings}

    @property
    def parts(self) -> range:
        """Numbers of all parts."""
        return range(-(-self.images // self.part_images))

    def indices(self, part: int) -> range:
        """Numbers of the images of a part."""
        return range(part * self.part_images, min(self.images, (part + 1) * self.part_images))

    def open(self, label: str) -> None:
        """Create the folder, or check that its contents have the same settings.

        Args:
            label: The option that named the folder, for messages.

        Raises:
            ConfigError: The folder holds parts of other settings, or cannot be written to.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / _SETTINGS
            if path.exists():
                self._check(json.loads(path.read_text(encoding="utf-8")), label)
            else:
                text = json.dumps(self.settings, indent=2)
                write_atomically(path, lambda file: file.write(text.encode()))
        except OSError as error:
            raise ConfigError(f"{label}: {shown(self.folder)}: {error.strerror}") from None
        except ValueError:
            raise ConfigError(
                f"{label}: {shown(self.folder / _SETTINGS)} is damaged", hint=f"delete {shown(self.folder)}"
            ) from None

    def _check(self, before: Any, label: str) -> None:
        before = before if isinstance(before, dict) else {}
        names = [name for name in {**before, **self.settings} if before.get(name) != self.settings.get(name)]
        if names:
            changed = "; ".join(f"{name} was {before.get(name)} and is {self.settings.get(name)}" for name in names)
            raise ConfigError(
                f"{label}: {shown(self.folder)} holds parts of other features: {changed}",
                hint=f"use the previous settings, or delete {shown(self.folder)}",
            )

    def info(self, part: int) -> PartInfo | None:
        """Contents of a part; None if it is missing or damaged."""
        try:
            stated = json.loads(self._path(part, "json").read_text(encoding="utf-8"))
            if any(self._path(part, f"{name}.npy").stat().st_size != size for name, size in stated["sizes"].items()):
                return None
            return PartInfo(stated["images"], tuple((index, reason) for index, reason in stated["unreadable"]))
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None

    def missing(self, readable: Callable[[int], bool] = lambda index: False) -> list[int]:
        """Numbers of the parts that are missing or damaged, or lack an image that has become readable.

        Args:
            readable: Whether an image, given by its number, can be read now. A failed disk or missing permission may
                have been repaired, which changes neither the image's size nor its time of modification.
        """
        infos = {part: self.info(part) for part in self.parts}
        return [
            part for part, info in infos.items() if info is None or any(readable(index) for index, _ in info.unreadable)
        ]

    def write(self, part: int, arrays: Mapping[str, NDArray[Any]], unreadable: Sequence[tuple[int, str]]) -> None:
        """Write a part; it is valid once its last file exists.

        Raises:
            DataError: The part cannot be written.
        """
        try:
            sizes = {}
            for name, array in arrays.items():
                path = self._path(part, f"{name}.npy")
                write_atomically(path, lambda file, array=array: _save(file, array))  # type: ignore[misc]
                sizes[name] = path.stat().st_size
            rows = len(self.indices(part)) - len(unreadable)
            text = json.dumps({"images": rows, "sizes": sizes, "unreadable": list(unreadable)})
            write_atomically(self._path(part, "json"), lambda file: file.write(text.encode()))
        except OSError as error:
            raise DataError(
                f"cannot write features to {shown(self.folder)}: {error.strerror}",
                hint="the parts written so far are kept: the same command continues from them",
            ) from None

    def read(self, part: int, name: str) -> NDArray[Any]:
        """An array of a part, memory-mapped from its file."""
        array: NDArray[Any] = np.load(self._path(part, f"{name}.npy"), mmap_mode="r", allow_pickle=False)
        return array

    def whole(self, name: str) -> NDArray[Any]:
        """An array of all parts, concatenated in memory; one file is open at a time, since there may be thousands."""
        first, start = self.read(0, name), 0
        whole = np.empty((len(self.readable()), *first.shape[1:]), first.dtype)
        for part in self.parts:
            piece = self.read(part, name)
            whole[start : start + len(piece)] = piece
            start += len(piece)
        return whole

    def readable(self) -> NDArray[np.int64]:
        """Number of the image of each row of the arrays."""
        bad = {index for index, _ in self.unreadable()}
        return np.array([index for index in range(self.images) if index not in bad], dtype=np.int64)

    def unreadable(self) -> Iterator[tuple[int, str]]:
        """(index, reason) of the unreadable images, which have no row."""
        for part in self.parts:
            info = self.info(part)
            yield from info.unreadable if info else ()

    def touch(self) -> None:
        """Set the folder's time of last use to now."""
        os.utime(self.folder)

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, part: int, ending: str) -> Path:
        return self.folder / f"{part:06d}.{ending}"


def _save(file: IO[bytes], array: NDArray[Any]) -> None:
    """Write an array as ``numpy.save`` does, whose error on a full disk does not name the reason."""
    array = np.ascontiguousarray(array)
    npy.write_array_header_1_0(file, npy.header_data_from_array_1_0(array))
    file.write(array.data)


def content_digest(source: ImageSource) -> str:
    """Hash of names, sizes and modification times of the images, and of the versions of remote objects.

    If it changes, features are computed again.
    """
    digest = hashlib.blake2b("\n".join((source.digest(), *source.versions)).encode(), digest_size=16)
    stamps: dict[str, str] = {}
    for index in range(len(source)):
        path = os.fspath(source.name(index))
        stamp = _stamp(path)
        if not stamp:  # for an image in an archive or a table, the archive's file is used, once
            while path not in stamps and not (stamp := _stamp(path)) and len(path) > 1:
                path = os.path.dirname(path)  # noqa: PTH120
            if path in stamps:
                continue
            stamps[path] = stamp
        digest.update(stamp.encode())
    return digest.hexdigest()


def _stamp(path: str) -> str:
    try:
        info = os.stat(path)  # noqa: PTH116
    except OSError:
        return ""
    return f"{info.st_size} {info.st_mtime_ns}\n"
