"""Images in tar files (WebDataset shards) and zip files, read in place and in any order.

An archive is read once to find its images; then each image takes one read, as from a folder. A tar file must not be
compressed, because compressed data has no random access.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from mae.data.decoding.formats import (
    HEAD_BYTES,
    MAX_FILE_BYTES,
    FileKind,
    ImageError,
    Verdict,
    describe_failure,
    judge,
    kind_of_head,
    too_large,
)
from mae.data.decoding.image import open_image, probe_open
from mae.data.sources.base import ImageSource
from mae.data.sources.scan_index import as_bytes, as_text, stamp
from mae.errors import DataError
from mae.io.text import shown

ARCHIVE_SUFFIXES = (".tar", ".zip")
MOST_OPEN_FILES = 64
_LOCAL_HEADER = 30
_SQUEEZED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


@dataclasses.dataclass(frozen=True)
class ArchiveListing:
    """The contents of an archive; ``offsets``, ``sizes`` and ``checks`` have one value per image.

    Attributes:
        names: Names of the images, each ended by a zero byte.
        offsets, sizes: Position and size of each image in the archive, in bytes.
        checks: Checksum of each deflated image; -1 for an image that is stored uncompressed.
        unreadable: (name, reason) of the unreadable files.
        others: Number of other files.
    """

    names: bytes = b""
    offsets: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()
    checks: tuple[int, ...] = ()
    unreadable: tuple[tuple[bytes, str], ...] = ()
    others: int = 0

    def to_plain(self) -> list[Any]:
        """The listing as values for JSON."""
        reasons = [[as_text(name), reason] for name, reason in self.unreadable]
        return [as_text(self.names), self.offsets, self.sizes, self.checks, reasons, self.others]

    @classmethod
    def from_plain(cls, plain: list[Any]) -> ArchiveListing:
        """The inverse of ``to_plain``."""
        names, offsets, sizes, checks, unreadable, others = plain
        reasons = tuple((as_bytes(name), reason) for name, reason in unreadable)
        return cls(as_bytes(names), tuple(offsets), tuple(sizes), tuple(checks), reasons, others)


class _Member(NamedTuple):
    name: bytes
    offset: int
    size: int
    check: int
    reason: str  # why it is unreadable, if the archive's directory shows it; else empty
    link: bytes = b""  # the earlier member whose bytes it shares; its own offset and size mean nothing then


def list_archive(path: Path, on_file: Callable[[], None]) -> ArchiveListing:
    """List an archive; the first bytes of every file in it are read.

    Raises:
        DataError: The file is not a readable archive, or is a compressed tar file.
    """
    with open_archive(path) as file:
        return list_members(path, file, os.fstat(file.fileno()).st_size, on_file)


def list_members(path: Path, file: IO[bytes], size: int, on_file: Callable[[], None]) -> ArchiveListing:
    """``list_archive`` for an open archive of ``size`` bytes; ``path`` is its name in messages."""
    names: list[bytes] = []
    offsets: list[int] = []
    sizes: list[int] = []
    checks: list[int] = []
    unreadable: list[tuple[bytes, str]] = []
    others = 0
    places: dict[bytes, int] = {}  # of the images by name, if there are links
    for member in (_zip_members if path.suffix.lower() == ".zip" else _tar_members)(path, file, size):
        on_file()
        if member.link:
            places = places or {name: place for place, name in enumerate(names)}
            place = places.get(member.link + b"\0")
            if place is None:
                others += 1
                continue
            member = member._replace(offset=offsets[place], size=sizes[place], check=checks[place])
        kind, reason = (FileKind.UNREADABLE, member.reason) if member.reason else _judge(file, member)
        if kind is FileKind.IMAGE:
            names.append(member.name + b"\0")
            if places:
                places[names[-1]] = len(names) - 1
            offsets.append(member.offset)
            sizes.append(member.size)
            checks.append(member.check)
        elif kind is FileKind.UNREADABLE:
            unreadable.append((member.name, reason))
        else:
            others += 1
    return ArchiveListing(b"".join(names), tuple(offsets), tuple(sizes), tuple(checks), tuple(unreadable), others)


def _tar_members(path: Path, file: IO[bytes], size: int) -> Iterator[_Member]:
    if file.read(8).startswith(_SQUEEZED):
        raise DataError(f"{shown(path)} is a compressed tar", hint="unpack it to a plain .tar, or to a folder")
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:", errorlevel=0) as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined] # tarfile would keep all members in memory
                name = os.fsencode(member.name).partition(b"\0")[0]
                if member.islnk() and not _is_hidden(name):
                    yield _Member(name, 0, 0, -1, "", os.fsencode(member.linkname))
                elif member.isreg() and not _is_hidden(name):
                    cut = member.offset_data + member.size > size
                    yield _Member(name, member.offset_data, member.size, -1, "is cut off" if cut else "")
    except tarfile.TarError as error:
        if file.tell() <= 512:
            raise DataError(f"{shown(path)} is not a tar file: {error}") from None
        yield _Member(b"", 0, 0, -1, f"breaks off: {error}")


def _zip_members(path: Path, file: IO[bytes], size: int) -> Iterator[_Member]:
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise DataError(f"{shown(path)} is not a readable zip file: {error}") from None
    for member in members:
        name = os.fsencode(member.filename)
        if not name or member.is_dir() or _is_hidden(name):
            continue
        # In a damaged directory the offset may be negative, or beyond what can be sought.
        file.seek(member.header_offset if 0 <= member.header_offset < size else size)
        header = file.read(_LOCAL_HEADER)
        after = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        stored = member.compress_type == zipfile.ZIP_STORED
        reason = ""
        if len(header) < _LOCAL_HEADER or not header.startswith(b"PK\3\4"):
            reason = "is not where the zip file says"
        elif member.flag_bits & 1:
            reason = "is encrypted"
        elif not stored and member.compress_type != zipfile.ZIP_DEFLATED:
            reason = "is compressed with a method other than deflate"
        else:
            reason = too_large(member.file_size) or ""
        offset = member.header_offset + _LOCAL_HEADER + after
        yield _Member(name, offset, member.compress_size, -1 if stored else member.CRC, reason)


def _is_hidden(name: bytes) -> bool:
    return any((part.startswith(b".") and part != b".") or part == b"__MACOSX" for part in name.split(b"/"))


def _judge(file: IO[bytes], member: _Member) -> Verdict:
    """The kind of a member; the file's position is restored."""

    def probe() -> str | None:
        if reason := too_large(member.size):
            return reason
        try:
            return probe_open(io.BytesIO(_read(file, member.offset, member.size, member.check)))
        except (OSError, ValueError, zlib.error) as error:
            return describe_failure(error)

    place = file.tell()
    try:
        return judge(member.name, _kind_of_member(file, member), probe)
    finally:
        file.seek(place)


def _kind_of_member(file: IO[bytes], member: _Member) -> FileKind:
    if member.size > MAX_FILE_BYTES:
        return FileKind.OTHER
    try:
        file.seek(member.offset)
        head = file.read(min(member.size, 4 * HEAD_BYTES))
        if member.check >= 0:
            head = zlib.decompressobj(-15).decompress(head, HEAD_BYTES)
    except (OSError, ValueError, zlib.error):
        return FileKind.UNDECIDED
    return kind_of_head(head)


def _read(file: IO[bytes], offset: int, size: int, check: int) -> bytes:
    """Read the content of a member."""
    file.seek(offset)
    data = file.read(size)
    if len(data) < size:
        raise ValueError("it is cut off")
    if check < 0:
        return data
    unpacker = zlib.decompressobj(-15)
    data = unpacker.decompress(data, MAX_FILE_BYTES)
    if not unpacker.eof or zlib.crc32(data) != check:
        raise ValueError("its checksum does not match")
    return data


def open_archive(path: Path) -> IO[bytes]:
    """Open an archive of any size for reading.

    Raises:
        DataError: The file cannot be opened, or is not a regular file.
    """
    return open_image(path, limited=False)


class ArchiveSource(ImageSource):
    """The images of some archives.

    Args:
        archives: Path and listing of each archive.
    """

    def __init__(self, archives: Sequence[tuple[Path, ArchiveListing]]) -> None:
        self._paths = [path for path, _ in archives]
        self._stamps = [self._stamp(path) for path in self._paths]
        listings = [listing for _, listing in archives]
        self._names = b"".join(listing.names for listing in listings)
        self._name_ends = np.flatnonzero(np.frombuffer(self._names, np.uint8) == 0)
        counts = [len(listing.offsets) for listing in listings]
        self._archive_of = np.repeat(np.arange(len(listings), dtype=np.int32), counts)
        self._offsets, self._sizes, self._checks = (
            np.fromiter((value for listing in listings for value in getattr(listing, field)), np.int64)
            for field in ("offsets", "sizes", "checks")
        )
        # Open files by process, because forked processes would share a file's position.
        self._files: dict[tuple[int, int], IO[bytes]] = {}

    def __len__(self) -> int:
        return len(self._offsets)

    def name(self, index: int) -> Path:
        """The archive's path and the image's name in it."""
        start = int(self._name_ends[index - 1]) + 1 if index else 0
        name = os.fsdecode(self._names[start : int(self._name_ends[index])])
        return self._paths[int(self._archive_of[index])] / name.lstrip("/")

    def open(self, index: int) -> IO[bytes]:
        """Read one image's bytes."""
        place = int(self._offsets[index]), int(self._sizes[index]), int(self._checks[index])
        try:
            return io.BytesIO(_read(self._file(int(self._archive_of[index])), *place))
        except ImageError as error:
            raise ImageError(self.name(index), f"{shown(error.message)}") from None
        except (OSError, ValueError, zlib.error) as error:
            raise ImageError(self.name(index), describe_failure(error)) from None

    def digest(self) -> str:
        """Hash of the images' names and sizes."""
        return hashlib.blake2b(self._names + self._sizes.tobytes(), digest_size=8).hexdigest()

    def _stamp(self, path: Path) -> list[int]:
        return stamp(path.stat())

    def _file(self, archive: int) -> IO[bytes]:
        key = os.getpid(), archive
        if key not in self._files:
            file = open_archive(self._paths[archive])
            if stamp(os.fstat(file.fileno()))[2:] != self._stamps[archive][2:]:
                file.close()
                raise ImageError(self._paths[archive], "has changed since its images were found")
            if len(self._files) >= MOST_OPEN_FILES:
                self._files.pop(next(iter(self._files))).close()
            self._files[key] = file
        return self._files[key]

    def __del__(self) -> None:
        for file in getattr(self, "_files", {}).values():
            file.close()

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_files": {}}
