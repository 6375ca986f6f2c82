"""Fetching a released checkpoint once, into a cache. Standard library only, and no network unless named by a user."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mae.checkpoints.releases import LICENCE_NOTE, Release
from mae.download import DownloadError, cache_folder, download, is_offline
from mae.download import announce_downloads as announce_downloads
from mae.errors import CheckpointError

LARGEST_FILE = 4_000_000_000  # bytes; the largest released file has 2.6e9


def fetch(release: Release) -> Path:
    """The cached file of a release, downloaded if it is not there yet.

    Raises:
        CheckpointError: It is not cached and cannot be downloaded, or what came is not the released file; the
            hint says where to put the file by hand.
    """
    path = cache_folder() / release.file_name
    if path.is_file():
        return path
    by_hand = f"get {release.url} by any means and save it as {path} ({LICENCE_NOTE})"
    if is_offline():
        raise CheckpointError(f"{release.name} is not in the cache, and the network is not to be used", hint=by_hand)
    try:
        download(
            release.name, release.url, path, largest=LARGEST_FILE, check=lambda received: _check(release, received)
        )
    except (DownloadError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{release.name} cannot be downloaded: {reason}", hint=by_hand) from None
    return path


def _check(release: Release, received: Path) -> None:
    """Hold a file's MD5 against what is known of the released one's."""
    if release.md5_prefix is None:
        return
    with received.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if not digest.startswith(release.md5_prefix):
        raise DownloadError(
            f"the download is not the released file (its MD5 begins with {digest[:6]}, the released one's with "
            f"{release.md5_prefix}); nothing was kept"
        )
