"""Shards by URL: each is fetched once into the cache folder, and read from there like any other."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mae.data.sources.archive import ARCHIVE_SUFFIXES
from mae.errors import DataError
from mae.io.download import ALLOWED_SCHEMES, DownloadError, cache_folder, download, is_offline
from mae.io.text import shown

SUFFIXES = (*ARCHIVE_SUFFIXES, ".parquet")
LARGEST_SHARD = 64_000_000_000  # bytes
# A path holds a URL with one of its slashes, and behind the current folder where it was made absolute.
_URL = re.compile(r"(?:^|/)([a-z][a-z0-9+.-]+):/+([^/].*)$", re.DOTALL)


def url_of(source: Path) -> str | None:
    """The URL that a source is, or None for a place on this machine."""
    match = None if os.path.exists(source) else _URL.search(str(source))
    return f"{match[1]}://{match[2]}" if match else None


def fetch_shard(url: str) -> Path:
    """The cached copy of a shard, downloaded if it is not there yet.

    Raises:
        DataError: It is not in the cache and cannot be downloaded.
    """
    parts = urlsplit(url)
    if parts.scheme not in ALLOWED_SCHEMES:
        raise DataError(
            f"{shown(url)}: refused to download over {parts.scheme}: only https is used",
            hint="give an https address, or copy the files here and give their names",
        )
    name = unquote(parts.path).rsplit("/", 1)[-1]
    if not name.lower().endswith(SUFFIXES):
        raise DataError(
            f"{shown(url)}: by URL only {', '.join(SUFFIXES)} are read",
            hint="https://host/train-{0000..0099}.tar names a hundred shards",
        )
    digest = hashlib.blake2b(url.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    path = cache_folder() / "shards" / f"{digest}-{_plain(name)}"
    if path.is_file():
        return path
    if is_offline():
        raise DataError(
            f"{shown(url)} is not in the cache, and downloads are disabled (--offline)",
            hint=f"get it another way and save it as {path}, or give its name on this machine",
        )
    try:
        download(name, url, path, largest=LARGEST_SHARD)
    except (DownloadError, OSError, ValueError) as error:
        raise DataError(
            f"{shown(url)} cannot be downloaded: {getattr(error, 'strerror', None) or error}",
            hint="the part received so far is kept; the same command continues from there",
        ) from None
    return path


def _plain(name: str) -> str:
    """A name that any file system takes; the end of it tells the kind."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)[-100:]
