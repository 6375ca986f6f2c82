"""Find the images in folders, archives and tables."""

from __future__ import annotations

import dataclasses
import errno
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mae.data.decoding.formats import describe_failure
from mae.data.sources.archive import ARCHIVE_SUFFIXES, ArchiveListing, ArchiveSource, list_archive
from mae.data.sources.base import ImageSource, JoinedSource
from mae.data.sources.folder import FolderReader, Listing, walk
from mae.data.sources.litdata import LitDataSource, is_litdata
from mae.data.sources.paths import ImagePaths
from mae.data.sources.scan_index import ScanIndex
from mae.errors import DataError
from mae.io.download import no_downloads
from mae.io.text import shown
from mae.io.urls import public_name, public_url, url_of

if TYPE_CHECKING:
    from mae.data.sources.remote import RemoteObject

MOST_NAMES = 100_000  # that a name with braces may stand for
_PACKED = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")  # of archives that are not read
_BRACES = re.compile(r"\{(\d{1,18})\.\.(\d{1,18})\}|\{([^{}]*,[^{}]*)\}")


@dataclasses.dataclass(frozen=True)
class Unreadable:
    """A file that is named like an image but cannot be read, or a folder that cannot be listed."""

    path: Path
    reason: str


@dataclasses.dataclass(frozen=True)
class ImageScan:
    """Result of a scan.

    Attributes:
        images: Files that begin like an image, sorted within each folder.
        unreadable: Files that are named like images but cannot be read.
        others: Number of other files (texts, tables ...).
        looked_into: The folders, archives and tables that were read; for a single image, its folder.
    """

    images: ImageSource
    unreadable: tuple[Unreadable, ...]
    others: int
    looked_into: tuple[Path, ...] = ()


def scan_images(
    sources: Sequence[Path],
    on_progress: Callable[[int], None] | None = None,
    *,
    offline: bool = False,
    cache_bytes: int | None = None,
) -> ImageScan:
    """Find images in folders, archives and single files, by content and not by suffix.

    Folders may be nested or flat, with or without class folders; links are followed, hidden files are ignored. A folder
    that is reached by several links counts once. Only the first bytes of a file are read: a truncated file is found
    when it is decoded. Results are cached in the user's cache folder, so the next scan reads only what has changed.

    Args:
        sources: Folders (also litdata data sets), .tar, .zip and .parquet files, and images; files also by any URL that
            fsspec reads. A name may contain braces: ``{000..099}``, ``{a,b}``.
        on_progress: Called from time to time with the number of scanned files.
        offline: Refuse URLs.
        cache_bytes: Disk space for data that is read by URL; None for the default.

    Raises:
        DataError: A source does not exist or cannot be read, or no source contains an image.
    """
    paths: list[Path] = []
    urls: list[str] = []
    for source in sources:
        if (url := url_of(source)) and url.startswith("file://"):
            local = "/" + url.removeprefix("file://")
            raise DataError(
                f"{shown(source)}: a file on this machine is given by its path", hint=f"give {shown(local)}"
            )
        if url:
            urls += expand_names(url)
        else:
            paths += expand_braces(source)
    for path in paths:
        failure = _missing(path)
        if failure:
            raise DataError(f"{shown(path)}: {failure}", hint="give an existing folder, archive or image")
    reader = FolderReader(on_progress)
    datasets = [path for path in dict.fromkeys(paths) if path.is_dir() and is_litdata(path)]
    listed = _folders_and_files([path for path in paths if path not in datasets], reader)
    archives = _archives([path for path in paths if _is_archive(path)], reader)
    tables = [path for path in dict.fromkeys(paths) if _is_table(path)]
    parts: list[ImageSource] = [ImagePaths((folder, listing.images) for folder, listing in listed)]
    if archives:
        parts.append(ArchiveSource(archives))
    if tables:
        from mae.data.sources.parquet import TableSource

        parts.append(TableSource(tables))
    parts += [LitDataSource(path) for path in datasets]
    with no_downloads(offline):
        remote_parts, remote_listings = _remote(urls, reader, cache_bytes)
    parts = [part for part in (*parts, *remote_parts) if len(part)]
    where: list[tuple[bytes, Listing | ArchiveListing]] = [*listed]
    where += [(os.fsencode(path), listing) for path, listing in archives]
    where += remote_listings
    unreadable = [
        Unreadable(Path(os.fsdecode(os.path.join(at, name.lstrip(b"/")))), reason)
        for at, listing in where
        for name, reason in listing.unreadable
    ]
    others = sum(listing.others for _, listing in where)
    if not parts:
        raise _nothing_found([*paths, *(Path(public_url(url)) for url in urls)], unreadable, others)
    folders = dict.fromkeys(Path(os.fsdecode(folder or b".")) for folder, _ in listed)
    looked_into = [*folders, *dict(archives), *tables, *datasets]
    joined = parts[0] if len(parts) == 1 else JoinedSource(parts)
    return ImageScan(joined, tuple(unreadable), others, tuple(looked_into))


def _remote(
    urls: Sequence[str], reader: FolderReader, cache_bytes: int | None
) -> tuple[list[ImageSource], list[tuple[bytes, ArchiveListing]]]:
    """The sources behind URLs, and the listings of the archives among them."""
    if not urls:
        return [], []
    from mae.data.sources import remote_sources as remote

    found: dict[remote.Kind | None, list[RemoteObject]] = {kind: [] for kind in remote.Kind}
    for one in remote.remote_objects(list(dict.fromkeys(urls)), cache_bytes):
        found[remote.kind_of(one.url)].append(one)
    parts: list[ImageSource] = []
    if images := found[remote.Kind.IMAGE]:
        parts.append(remote.RemoteImageSource(images))
    if archives := remote.list_objects(found[remote.Kind.ARCHIVE], reader.count):
        parts.append(remote.RemoteArchiveSource(archives))
    if tables := found[remote.Kind.TABLE]:
        parts.append(remote.RemoteTableSource(tables))
    return parts, [(os.fsencode(one.name), listing) for one, listing in archives]


def expand_braces(source: Path) -> list[Path]:
    """Expand ``shards-{000..099}.tar`` to a hundred paths; the name of an existing file is not expanded.

    Raises:
        DataError: A range counts down, or there are more than ``MOST_NAMES`` names.
    """
    return [Path(name) for name in expand_names(str(source))]


def expand_names(pattern: str) -> list[str]:
    """``expand_braces`` for a path or a URL."""
    if os.path.exists(pattern):
        return [pattern]
    total = math.prod(_count(match) for match in _BRACES.finditer(pattern))
    if total > MOST_NAMES:
        raise DataError(
            f"{shown(public_name(Path(pattern)))} stands for {total:,} names; at most {MOST_NAMES:,} are read"
        )
    return list(_expanded(pattern))


def _expanded(pattern: str) -> Iterator[str]:
    match = _BRACES.search(pattern)
    if match is None or os.path.exists(pattern):
        yield pattern
        return
    first, last, words = match.groups()
    parts = words.split(",") if words else (f"{n:0{len(first)}}" for n in range(int(first), int(last) + 1))
    for part in parts:
        yield from _expanded(pattern[: match.start()] + part + pattern[match.end() :])


def _count(match: re.Match[str]) -> int:
    first, last, words = match.groups()
    if words:
        return words.count(",") + 1
    if int(first) > int(last):
        raise DataError(f"{shown(match[0])} counts down; the smaller number comes first")
    return int(last) - int(first) + 1


def _nothing_found(paths: Sequence[Path], unreadable: Sequence[Unreadable], others: int) -> DataError:
    where = ", ".join(shown(path) for path in paths)
    if unreadable:
        what = f"{len(unreadable)} unreadable and {others} other files"
    elif others:
        what = f"{others} files of other kinds" if others > 1 else "a file of another kind"
    else:
        what = "only hidden files, which are not read" if any(map(_holds_hidden, paths)) else "it is empty"
    hint = f"{shown(unreadable[0].path)}: {unreadable[0].reason}" if unreadable else None
    for path in paths:
        if path.suffix.lower() in _PACKED:
            hint = f"unpack {shown(path)}: folders, .tar, .zip and .parquet files are read"
        archive = next((one for one in sorted(path.glob("*")) if _is_archive(one) or one.suffix == ".parquet"), None)
        if archive is not None:
            hint = f"archives are read when they are named: {shown(path)}/*{archive.suffix}"
        if inside := next((one for one in sorted(path.glob("*/")) if is_litdata(one)), None):
            hint = f"a litdata data set is read when its own folder is named: {shown(inside)}"
    return DataError(f"no image in {where}: {what}", hint=hint)


def _holds_hidden(path: Path) -> bool:
    return any(name.startswith(".") for _, folders, files in os.walk(path) for name in (*folders, *files))


def holds_many(path: Path) -> bool:
    """Whether a path is a folder, an archive, a table or any URL."""
    return os.path.isdir(path) or _is_archive(path) or path.suffix.lower() == ".parquet" or url_of(path) is not None


def is_image_url(path: Path) -> bool:
    """Whether it is the URL of a single image."""
    if (url := url_of(path)) is None:
        return False
    from mae.data.sources.remote_sources import Kind, kind_of

    return kind_of(url) is Kind.IMAGE


def _is_archive(path: Path) -> bool:
    return path.suffix.lower() in ARCHIVE_SUFFIXES and os.path.isfile(path)


def _is_table(path: Path) -> bool:
    return path.suffix.lower() == ".parquet" and path.is_file()


def _missing(source: Path) -> str:
    try:
        source.stat()
        return ""
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            return describe_failure(error)
    if source.is_symlink():
        return "is a link to nothing"
    return "no such file" if source.suffix else "no such folder"


def _archives(paths: Sequence[Path], reader: FolderReader) -> list[tuple[Path, ArchiveListing]]:
    found = []
    for path in dict.fromkeys(paths):
        name, index = os.fsencode(path), ScanIndex(os.fsencode(path))
        info = path.stat()
        kept = index.get(name, info)
        if kept is not None:
            listing = ArchiveListing.from_plain(kept)
        else:
            listing = list_archive(path, reader.count)
            index.put(name, info, listing.to_plain(), len(listing.offsets) + listing.others)
            index.save()
        found.append((path, listing))
    return found


def _folders_and_files(paths: Sequence[Path], reader: FolderReader) -> list[tuple[bytes, Listing]]:
    found: list[tuple[bytes, Listing]] = []
    visited: set[tuple[int, int]] = set()
    for path in paths:
        if path.is_dir():
            reader.index = ScanIndex(os.fsencode(path))
            found += walk(os.fsencode(path), reader, visited)
            reader.index.save()
    files = [path for path in paths if not path.is_dir() and not _is_archive(path) and not _is_table(path)]
    singles = dict.fromkeys(os.path.split(os.fsencode(path)) for path in files)
    folders = {folder for folder, _ in singles}
    listed = {(at, name) for at, listing in found if at in folders for name in _names(listing) if (at, name) in singles}
    found += [(folder, reader.file(folder, name)) for folder, name in singles if (folder, name) not in listed]
    return found


def _names(listing: Listing) -> list[bytes]:
    """Names of the images and of the unreadable files of a folder."""
    return [*listing.images.split(b"\0")[:-1], *(name for name, _ in listing.unreadable)]
