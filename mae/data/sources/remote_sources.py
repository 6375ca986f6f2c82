"""Archives and tables behind URLs: indexed once, then read by byte ranges; and single images behind URLs."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import enum
import hashlib
import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import PIL

from mae.data.decoding.formats import ImageError, image_suffixes, too_large
from mae.data.sources.archive import ARCHIVE_SUFFIXES, MOST_OPEN_FILES, ArchiveListing, ArchiveSource, list_members
from mae.data.sources.base import GROUPS_AT_ONCE, ImageSource
from mae.data.sources.parquet import TableSource
from mae.data.sources.remote import Connections, RemoteError, RemoteObject, remote_cache, suffix_of
from mae.io.download import cache_folder, is_offline
from mae.io.files import write_atomically
from mae.io.text import shown
from mae.io.urls import public_url

SUFFIXES = (*ARCHIVE_SUFFIXES, ".parquet")
GROUP_BYTES = 8 * 2**20  # all images of such a part of an archive form a group of the epoch's order
INDEX_VERSION = 2
_ASKED_AT_ONCE, _LISTED_AT_ONCE = 16, 4


class _RemoteSource(ImageSource):
    """What the sources of remote objects have in common."""

    _objects: list[RemoteObject]

    @property
    def is_remote(self) -> bool:
        return True

    @property
    def versions(self) -> Sequence[str]:
        """Size and version of each object."""
        return [" ".join(remote.stamp) for remote in self._objects]

    @property
    def warnings(self) -> Sequence[str]:
        """A warning if changes of an object may not be noticed."""
        return _unwatched(self._objects)


class RemoteArchiveSource(_RemoteSource, ArchiveSource):
    """The images of some archives behind URLs.

    Images of the same 8 MiB of an archive form a group. The order of an epoch mixes the images of 16 groups, so that a
    block is fetched about once per epoch, even with a small cache.

    Args:
        archives: Each archive with its listing.
    """

    def __init__(self, archives: Sequence[tuple[RemoteObject, ArchiveListing]]) -> None:
        self._objects = [remote for remote, _ in archives]
        super().__init__([(Path(remote.name), listing) for remote, listing in archives])
        places = self._archive_of.astype(np.int64) << 40 | self._offsets // GROUP_BYTES
        begins = np.flatnonzero(np.r_[True, places[1:] != places[:-1]]) if len(places) else np.zeros(0, np.int64)
        self._groups: list[int] = np.diff(np.r_[begins, len(places)]).tolist()

    @property
    def groups(self) -> Sequence[int]:
        """Number of images of each group."""
        return self._groups

    def prefetch(self, index: int) -> None:
        """Fetch an image's blocks into the cache."""
        start = int(self._offsets[index])
        self._objects[int(self._archive_of[index])].prefetch(start, start + int(self._sizes[index]))

    def _stamp(self, path: Path) -> list[int]:
        return []  # not needed, because each read checks that the object has not changed

    def _file(self, archive: int) -> IO[bytes]:
        key = os.getpid(), archive
        if key not in self._files:
            if len(self._files) >= MOST_OPEN_FILES:
                self._files.pop(next(iter(self._files))).close()
            self._files[key] = self._objects[archive].open()
        return self._files[key]


class RemoteTableSource(_RemoteSource, TableSource):
    """The images in one column of some Parquet files behind URLs.

    Args:
        objects: The files.
    """

    def __init__(self, objects: Sequence[RemoteObject]) -> None:
        self._objects = list(objects)
        self._fetched: collections.deque[int] = collections.deque(maxlen=2 * GROUPS_AT_ONCE)
        super().__init__([Path(remote.name) for remote in objects])

    def prefetch(self, index: int) -> None:
        """Fetch the blocks of an image's row group into the cache, once for the images that follow each other."""
        group, _ = self._find(index)
        if group not in self._fetched:
            self._fetched.append(group)
            self._objects[self._places[group][0]].prefetch(*self._spans[group])

    def _open(self, number: int) -> Any:
        return self._objects[number].open()


class RemoteImageSource(_RemoteSource):
    """Single images behind URLs.

    Args:
        objects: The images.
    """

    def __init__(self, objects: Sequence[RemoteObject]) -> None:
        self._objects = list(objects)

    def __len__(self) -> int:
        return len(self._objects)

    def name(self, index: int) -> Path:
        return Path(self._objects[index].name)

    def open(self, index: int) -> IO[bytes]:
        remote = self._objects[index]
        if reason := too_large(remote.size):
            raise ImageError(remote.name, reason)
        return io.BytesIO(remote.read(0, remote.size))

    def digest(self) -> str:
        """Hash of the images' names, in order."""
        names = "\0".join(remote.name for remote in self._objects)
        return hashlib.blake2b(names.encode(), digest_size=8).hexdigest()

    def prefetch(self, index: int) -> None:
        remote = self._objects[index]
        if not too_large(remote.size):
            remote.prefetch(0, remote.size)


class Kind(enum.Enum):
    """What a URL names, by its suffix."""

    IMAGE = enum.auto()
    ARCHIVE = enum.auto()
    TABLE = enum.auto()


def kind_of(url: str) -> Kind | None:
    """What a URL names; None if it is not read."""
    suffix = suffix_of(url)
    if suffix in SUFFIXES:
        return Kind.ARCHIVE if suffix in ARCHIVE_SUFFIXES else Kind.TABLE
    return Kind.IMAGE if suffix in image_suffixes() else None


def remote_objects(urls: Sequence[str], cache_bytes: int | None) -> list[RemoteObject]:
    """The objects behind some URLs; several requests run at a time.

    Raises:
        DataError: An object does not exist, or its kind is not supported.
        ConfigError: A package for a kind of URL is not installed.
    """
    for url in urls:
        if kind_of(url) is None:
            raise RemoteError(
                f"{shown(public_url(url))}: by URL only images and {', '.join(SUFFIXES)} files are read",
                hint="s3://bucket/train-{0000..0099}.tar names a hundred shards; copy a folder, also that of a "
                "litdata data set, to this machine first",
            )
    if is_offline():
        raise RemoteError(
            f"{shown(public_url(urls[0]))} is not on this machine, and downloads are disabled (--offline)",
            hint="give the name of a copy on this machine",
        )
    cache, connections = remote_cache(cache_bytes), Connections()
    with concurrent.futures.ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        return list(pool.map(lambda url: RemoteObject(url, cache, connections), urls))


def list_objects(
    objects: Sequence[RemoteObject], on_file: Callable[[], None]
) -> list[tuple[RemoteObject, ArchiveListing]]:
    """List some archives, from their cached index or else by reading them once.

    Raises:
        DataError: An object is not an archive, or cannot be read.
    """
    with concurrent.futures.ThreadPoolExecutor(_LISTED_AT_ONCE) as pool:
        found = []
        for remote, listing in zip(objects, pool.map(_listing, objects), strict=True):
            for _ in range(len(listing.offsets) + listing.others + len(listing.unreadable)):
                on_file()
            found.append((remote, listing))
        return found


def _unwatched(objects: Sequence[RemoteObject]) -> Sequence[str]:
    names = [shown(remote.name) for remote in objects if not remote.has_version]
    if not names:
        return ()
    which = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1:,} more"
    return (
        f"{which}: the server gives neither an ETag nor a date, so a change of the content that keeps its size is not "
        "noticed",
    )


def _listing(remote: RemoteObject) -> ArchiveListing:
    path = cache_folder() / "scans" / f"remote-{remote.key}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        kept = json.loads(path.read_bytes())
        if (kept["version"], kept["pillow"]) == (INDEX_VERSION, PIL.__version__):
            return ArchiveListing.from_plain(kept["listing"])
    with remote.open() as file:
        listing = list_members(Path(remote.name), file, remote.size, lambda: None)
    text = json.dumps({"version": INDEX_VERSION, "pillow": PIL.__version__, "listing": listing.to_plain()})
    if not remote.has_version:
        return listing
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: file.write(text.encode()))
    return listing
