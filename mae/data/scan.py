"""Find the pictures below some folders."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mae.data.formats import HEAD_BYTES, describe_failure, picture_suffixes, sniff
from mae.data.paths import PicturePaths
from mae.data.picture import probe_picture
from mae.errors import DataError
from mae.files import shown

FILES_BETWEEN_REPORTS = 256


@dataclasses.dataclass(frozen=True)
class Unreadable:
    """A file that should be a picture and is none, or a folder that cannot be looked into."""

    path: Path
    reason: str


@dataclasses.dataclass(frozen=True)
class PictureScan:
    """What was found.

    Attributes:
        pictures: Files whose content is a picture's, sorted within each folder.
        unreadable: Files that are named like a picture and are none that can be read.
        others: How many files are neither (texts, tables ...).
    """

    pictures: PicturePaths
    unreadable: tuple[Unreadable, ...]
    others: int


@dataclasses.dataclass(frozen=True)
class Listing:
    """What one folder holds, by name.

    Attributes:
        subfolders: Sorted.
        pictures: Sorted, each ended by a zero byte.
        unreadable: Names and reasons.
        others: How many other files there are.
    """

    subfolders: tuple[bytes, ...] = ()
    pictures: bytes = b""
    unreadable: tuple[tuple[bytes, str], ...] = ()
    others: int = 0


def scan_pictures(sources: Sequence[Path], on_progress: Callable[[int], None] | None = None) -> PictureScan:
    """Look through folders (and single files) for pictures, by content rather than by suffix.

    Folders may be nested or flat, with class folders or without; links are followed, hidden files are not.
    Each folder counts once, however many ways lead to it. Only a file's head is read here: one that breaks
    off later is found when it is decoded.

    Args:
        sources: Folders or files.
        on_progress: Called with the number of files seen so far, now and then.

    Raises:
        DataError: A source does not exist, or there is no picture in any of them.
    """
    reader = _Reader(on_progress)
    found: list[tuple[bytes, Listing]] = []
    visited: set[tuple[int, int]] = set()
    for source in sources:
        failure = _missing(source)
        if failure:
            raise DataError(f"{shown(source)}: {failure}", hint="give a folder with pictures, or several")
        if source.is_dir():
            found += _walk(os.fsencode(source), reader, visited)
    for source in dict.fromkeys(source for source in sources if not source.is_dir()):
        folder, name = os.path.split(os.fsencode(source))
        if not any(at == folder and _holds(listing, name) for at, listing in found):
            found.append((folder, reader.file(folder, name)))
    pictures = PicturePaths((folder, listing.pictures) for folder, listing in found)
    unreadable = tuple(
        Unreadable(Path(os.fsdecode(os.path.join(folder, name))), reason)
        for folder, listing in found
        for name, reason in listing.unreadable
    )
    others = sum(listing.others for _, listing in found)
    if not pictures:
        where = ", ".join(shown(source) for source in sources)
        what = f"{len(unreadable)} unreadable and {others} other files" if unreadable or others else "it is empty"
        hint = f"{shown(unreadable[0].path)}: {unreadable[0].reason}" if unreadable else None
        raise DataError(f"no picture in {where}: {what}", hint=hint)
    return PictureScan(pictures, unreadable, others)


def _missing(source: Path) -> str:
    if source.exists():
        return ""
    return "is a link to nothing" if source.is_symlink() else "no such folder"


def _holds(listing: Listing, name: bytes) -> bool:
    return b"\0" + name + b"\0" in b"\0" + listing.pictures or any(bad == name for bad, _ in listing.unreadable)


def _walk(top: bytes, reader: _Reader, visited: set[tuple[int, int]]) -> Iterator[tuple[bytes, Listing]]:
    """A folder and all below it, each real one once, so that circular links end."""
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
        listing = reader.folder(folder)
        yield folder, listing
        waiting += [os.path.join(folder, name) for name in reversed(listing.subfolders)]


class _Reader:
    """Reads folders, telling how far it is."""

    def __init__(self, on_progress: Callable[[int], None] | None) -> None:
        self.on_progress = on_progress
        self.seen = 0

    def folder(self, folder: bytes) -> Listing:
        """Look into a folder and at the head of every file in it."""
        subfolders: list[bytes] = []
        files: list[bytes] = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if not entry.name.startswith(b"."):
                        (subfolders if _is_folder(entry) else files).append(entry.name)
        except OSError as error:
            return Listing(unreadable=((b"", describe_failure(error)),))
        pictures, unreadable, others = [], [], 0
        for name in sorted(files):
            kind = self._kind(os.path.join(folder, name))
            if kind is None:
                pictures.append(name + b"\0")
            elif kind:
                unreadable.append((name, kind))
            else:
                others += 1
        return Listing(tuple(sorted(subfolders)), b"".join(pictures), tuple(unreadable), others)

    def file(self, folder: bytes, name: bytes) -> Listing:
        """Look at one file that was named by its path."""
        kind = self._kind(os.path.join(folder, name))
        if kind is None:
            return Listing(pictures=name + b"\0")
        return Listing(unreadable=((name, kind),)) if kind else Listing(others=1)

    def _kind(self, path: bytes) -> str | None:
        """None for a picture, the reason for a file that is named like one and is none, else an empty text."""
        self.seen += 1
        if self.on_progress is not None and self.seen % FILES_BETWEEN_REPORTS == 0:
            self.on_progress(self.seen)
        named = os.path.splitext(path)[1].lower().decode("latin-1") in picture_suffixes()
        told = _sniff(path)
        if told is True:
            return None
        if told is False and not named:
            return ""
        failure = probe_picture(Path(os.fsdecode(path)))
        return failure if failure is None or named else ""


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads back to itself
        return False


def _sniff(path: bytes) -> bool | None:
    """What a regular file's head says; None where it has to be opened with care to know."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            return sniff(os.read(descriptor, HEAD_BYTES))
        finally:
            os.close(descriptor)
    except OSError:
        return None
