"""List folders, or use cached listings."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mae.data.decoding.formats import HEAD_BYTES, FileKind, Verdict, describe_failure, judge, kind_of_head
from mae.data.decoding.image import probe_image
from mae.data.sources.scan_index import ScanIndex, as_bytes, as_text, stamp

FILES_BETWEEN_REPORTS = 256


@dataclasses.dataclass(frozen=True)
class Listing:
    """The contents of a folder.

    Attributes:
        subfolders: Names of the subfolders, sorted.
        images: Names of the images, sorted, each ended by a zero byte.
        unreadable: (name, reason) of the unreadable files.
        others: Number of other files.
    """

    subfolders: tuple[bytes, ...] = ()
    images: bytes = b""
    unreadable: tuple[tuple[bytes, str], ...] = ()
    others: int = 0

    def to_plain(self) -> list[Any]:
        """The listing as values for JSON."""
        reasons = [[as_text(name), reason] for name, reason in self.unreadable]
        return [[as_text(name) for name in self.subfolders], as_text(self.images), reasons, self.others]

    @classmethod
    def from_plain(cls, plain: list[Any]) -> Listing:
        """The inverse of ``to_plain``."""
        subfolders, images, unreadable, others = plain
        reasons = tuple((as_bytes(name), reason) for name, reason in unreadable)
        return cls(tuple(as_bytes(name) for name in subfolders), as_bytes(images), reasons, others)


def walk(top: bytes, reader: FolderReader, visited: set[tuple[int, int]]) -> Iterator[tuple[bytes, Listing]]:
    """List a folder and all folders below it; each is visited once, so circular links end."""
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        try:
            info = os.stat(folder)
        except OSError as error:
            yield os.path.dirname(folder), Listing(unreadable=((os.path.basename(folder), describe_failure(error)),))
            continue
        if (info.st_dev, info.st_ino) in visited:
            continue
        visited.add((info.st_dev, info.st_ino))
        listing = reader.folder(folder, info)
        yield folder, listing
        waiting += [os.path.join(folder, name) for name in reversed(listing.subfolders)]


class FolderReader:
    """Lists folders, with a cache and progress."""

    def __init__(self, on_progress: Callable[[int], None] | None) -> None:
        self.on_progress = on_progress
        self.seen = 0
        self.index: ScanIndex | None = None

    def count(self) -> None:
        """Count another scanned file."""
        self.seen += 1
        if self.on_progress is not None and self.seen % FILES_BETWEEN_REPORTS == 0:
            self.on_progress(self.seen)

    def folder(self, folder: bytes, info: os.stat_result) -> Listing:
        """List a folder, or use its cached listing."""
        kept = self.index.get(folder, info) if self.index else None
        if kept is not None:
            listing = Listing.from_plain(kept[0])
            if _marks(folder, listing) == kept[1]:
                return listing
        listing, files = self._read(folder)
        if self.index:
            self.index.put(folder, info, [listing.to_plain(), _marks(folder, listing)], files)
        return listing

    def _read(self, folder: bytes) -> tuple[Listing, int]:
        """List a folder, reading the first bytes of every file in it; also returns the number of files."""
        subfolders: list[bytes] = []
        files: list[bytes] = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if not entry.name.startswith(b"."):
                        (subfolders if _is_folder(entry) else files).append(entry.name)
        except OSError as error:
            return Listing(unreadable=((b"", describe_failure(error)),)), 0
        images, unreadable, others = [], [], 0
        for name in sorted(files):
            kind, reason = self._judge(os.path.join(folder, name))
            if kind is FileKind.IMAGE:
                images.append(name + b"\0")
            elif kind is FileKind.UNREADABLE:
                unreadable.append((name, reason))
            else:
                others += 1
        return Listing(tuple(sorted(subfolders)), b"".join(images), tuple(unreadable), others), len(files)

    def file(self, folder: bytes, name: bytes) -> Listing:
        """The listing of a single file that was given by its path."""
        kind, reason = self._judge(os.path.join(folder, name))
        if kind is FileKind.IMAGE:
            return Listing(images=name + b"\0")
        return Listing(unreadable=((name, reason),)) if kind is FileKind.UNREADABLE else Listing(others=1)

    def _judge(self, path: bytes) -> Verdict:
        self.count()
        return judge(path, _kind_of_file(path), lambda: probe_image(Path(os.fsdecode(path))))


def _marks(folder: bytes, listing: Listing) -> list[list[int]]:
    """Values that change when an unreadable file is repaired."""
    marks = []
    for name, _ in listing.unreadable:
        try:
            marks.append(stamp(os.stat(os.path.join(folder, name))))
        except OSError:
            marks.append([])
    return marks


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads back to itself
        return False


def _kind_of_file(path: bytes) -> FileKind:
    """The kind of a regular file by its first bytes; other files are undecided and are opened with more checks."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return FileKind.UNDECIDED
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            return kind_of_head(os.read(descriptor, HEAD_BYTES))
        finally:
            os.close(descriptor)
    except OSError:
        return FileKind.UNDECIDED
