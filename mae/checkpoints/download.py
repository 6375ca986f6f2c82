"""Fetching a released checkpoint once, into a cache. Standard library only, and no network unless named by a user."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mae.checkpoints.releases import LICENCE_NOTE, Release
from mae.errors import CheckpointError
from mae.files import write_atomically

if TYPE_CHECKING:
    from http.client import HTTPResponse

ALLOWED_SCHEMES = ("https",)
LARGEST_FILE = 4_000_000_000  # bytes; the largest released file has 2.6e9
_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 30

# Told (what, bytes done, bytes in all or None).
Listener = Callable[[str, int, int | None], None]
_listener: ContextVar[Listener] = ContextVar("listener", default=lambda what, done, total: None)


@contextmanager
def announce_downloads(listener: Listener) -> Iterator[None]:
    """Within this context, tell ``listener`` how downloads proceed."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def cache_folder() -> Path:
    """Where downloads are kept: ``MAECLI_CACHE``, else ``maecli`` in the user's cache folder."""
    if named := os.environ.get("MAECLI_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "maecli"


def is_offline(asked: bool = False) -> bool:
    """Whether the network is not to be used: asked so, or by the environment's ``MAECLI_OFFLINE``."""
    return asked or os.environ.get("MAECLI_OFFLINE", "").lower() not in ("", "0", "false", "no")


def fetch(release: Release, *, offline: bool = False) -> Path:
    """The cached file of a release, downloaded if it is not there yet.

    Raises:
        CheckpointError: It is not cached and cannot be downloaded, or what came is not the released file; the
            hint says where to put the file by hand.
    """
    path = cache_folder() / release.file_name
    if path.is_file():
        return path
    by_hand = f"get {release.url} by any means and save it as {path} ({LICENCE_NOTE})"
    if is_offline(offline):
        raise CheckpointError(f"{release.name} is not in the cache, and the network is not to be used", hint=by_hand)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _open(release.url) as response:
            write_atomically(path, lambda file: _receive(release, response, file))
    except CheckpointError as error:
        raise CheckpointError(error.message, hint=error.hint or by_hand) from None
    except (OSError, ValueError) as error:  # urllib's errors are OSErrors, http.client's end as either
        if hasattr(error, "close"):
            error.close()
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise CheckpointError(f"{release.name} cannot be downloaded: {reason}", hint=by_hand) from None
    return path


def _open(url: str) -> Any:
    import urllib.request

    class OnlyAllowed(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
            try:
                _check_scheme(newurl)
            except CheckpointError:
                fp.close()
                raise
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    _check_scheme(url)
    request = urllib.request.Request(url, headers={"User-Agent": "maecli"})
    return urllib.request.build_opener(OnlyAllowed).open(request, timeout=_TIMEOUT_SECONDS)


def _check_scheme(url: str) -> None:
    if urlsplit(url).scheme not in ALLOWED_SCHEMES:
        raise CheckpointError(f"refused to download over {urlsplit(url).scheme or 'nothing'}: only https is used")


def _receive(release: Release, response: HTTPResponse, file: IO[bytes]) -> None:
    """Copy the answer into a file, and check its size and what is known of its MD5."""
    stated = response.headers.get("Content-Length", "")
    total = int(stated) if stated.isdigit() else None
    digest = hashlib.md5(usedforsecurity=False)
    done = 0
    while chunk := response.read(_CHUNK):
        done += len(chunk)
        if max(done, total or 0) > LARGEST_FILE:
            raise CheckpointError(f"{release.name}: the server sends more than {LARGEST_FILE:,} bytes; stopped")
        digest.update(chunk)
        file.write(chunk)
        _listener.get()(release.name, done, total)
    if total is not None and done != total:
        raise CheckpointError(f"{release.name}: the download broke off at {done:,} of {total:,} bytes; try again")
    if release.md5_prefix and not digest.hexdigest().startswith(release.md5_prefix):
        raise CheckpointError(
            f"{release.name}: the download is not the released file (its MD5 begins with {digest.hexdigest()[:6]}, "
            f"the released one's with {release.md5_prefix}); nothing was kept"
        )
