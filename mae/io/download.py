"""Download a file once over https, atomically and resumable.

Called only for files that a user has named.
"""

from __future__ import annotations

import functools
import http.client
import os
import shutil
import ssl
import time
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any, TypeVar, cast
from urllib.parse import urlsplit

from mae.errors import ConfigError
from mae.io.files import write_atomically
from mae.io.locks import take_lock

ALLOWED_SCHEMES = ("https",)
ATTEMPTS = 5
BACK_OFF_SECONDS = 1.0  # before the second attempt; doubled before each further one
_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 30
_PASSING = (408, 425, 429, 500, 502, 503, 504)  # HTTP statuses of failures that may be temporary

_UseCase = TypeVar("_UseCase", bound=Callable[..., Any])

# Called with (name, bytes received, total bytes or None).
Listener = Callable[[str, int, int | None], None]
_listener: ContextVar[Listener] = ContextVar("listener", default=lambda what, done, total: None)
_forbidden: ContextVar[bool] = ContextVar("forbidden", default=False)


class DownloadError(Exception):
    """A file cannot be downloaded; the message gives the reason without the name."""


class _PassingError(Exception):
    """A download error that may not occur again on the next attempt."""


@contextmanager
def announce_downloads(listener: Listener) -> Iterator[None]:
    """A context manager in which ``listener`` is called with the progress of downloads."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def cache_folder() -> Path:
    """Folder of cached downloads and scans: ``MAECLI_CACHE``, else ``maecli`` in the user's cache folder.

    Raises:
        ConfigError: Neither is known, as in a container whose user has no home folder.
    """
    if named := os.environ.get("MAECLI_CACHE"):
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "maecli"
    except RuntimeError:
        raise ConfigError(
            "this user has no home folder, so there is no place for cached files",
            hint="set the environment variable MAECLI_CACHE to a folder",
        ) from None


@contextmanager
def no_downloads(forbidden: bool = True) -> Iterator[None]:
    """A context manager in which downloads are refused if ``forbidden``, or if an outer context refuses them."""
    token = _forbidden.set(forbidden or _forbidden.get())
    try:
        yield
    finally:
        _forbidden.reset(token)


def obeys_offline(use_case: _UseCase) -> _UseCase:
    """Decorate a use case so that no download happens within it if its ``config.offline`` is true."""

    @functools.wraps(use_case)
    def run(config: Any, *args: Any, **options: Any) -> Any:
        with no_downloads(config.offline):
            return use_case(config, *args, **options)

    return cast(_UseCase, run)


def is_offline() -> bool:
    """Whether downloads are refused, by ``no_downloads`` or the environment variable ``MAECLI_OFFLINE``."""
    return _forbidden.get() or os.environ.get("MAECLI_OFFLINE", "").lower() not in ("", "0", "false", "no")


def download(
    what: str, url: str, path: Path, *, largest: int, check: Callable[[Path], None] = lambda path: None
) -> None:
    """Download a file, unless it exists.

    The received part is kept beside ``path`` until the file is complete, so an interrupted download continues from
    there if the server still has the same file. If several processes want the same file, one downloads it and the
    others wait.

    Args:
        what: Name of the file for the listener.
        url: Address of the file.
        path: Target; its folder is created.
        largest: Largest size in bytes; a longer download is stopped.
        check: Called with the complete file before it is moved into place; raises ``DownloadError`` if it is wrong.

    Raises:
        DownloadError: The file cannot be downloaded, or fails ``check``.
        OSError: The file cannot be written.
    """
    if is_offline():
        raise DownloadError("downloads are disabled (--offline)")
    _check_scheme(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    unlock = take_lock(path.with_name(f".{path.name}.lock"), wait=True)
    try:
        if path.is_file():
            return
        for attempt in range(ATTEMPTS):
            try:
                _receive(what, url, part, largest)
                break
            except _PassingError as error:
                if attempt + 1 == ATTEMPTS:
                    raise DownloadError(f"{error} ({ATTEMPTS} attempts)") from None
                time.sleep(BACK_OFF_SECONDS * 2**attempt)
        try:
            check(part)
        except DownloadError:
            _forget(part)
            raise
        part.replace(path)
        _forget(part)
    finally:
        unlock()


def _receive(what: str, url: str, part: Path, largest: int) -> None:
    """Download the missing part of a file."""
    have = part.stat().st_size if part.exists() else 0
    known = _tag_file(part).read_text() if have and _tag_file(part).exists() else ""
    headers = {"User-Agent": "maecli", "Accept-Encoding": "identity"}
    if have and known:
        headers |= {"Range": f"bytes={have}-", "If-Range": known}
    else:
        have = 0
    try:
        with _open(url, headers) as response:
            if response.status == 206 and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                _forget(part)
                raise _PassingError("the server sent another part of the file than was asked for")
            have = have if response.status == 206 else 0
            stated = response.headers.get("Content-Length", "")
            total = have + int(stated) if stated.isdigit() else None
            _check_room(part, total, have, largest)
            tag = response.headers.get("ETag", "") or response.headers.get("Last-Modified", "")
            write_atomically(_tag_file(part), lambda file: file.write(tag.removeprefix("W/").encode("ascii", "ignore")))
            with part.open("ab" if have else "wb") as file:
                received = _copy(what, response, file, have, total, largest)
                file.flush()
                os.fsync(file.fileno())
        if received > largest:
            _forget(part)
            raise _too_much(largest)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # range not satisfiable: the file on the server has changed
            _forget(part)
            raise _PassingError("the file changed while it was downloaded") from None
        answer = f"the server answers {error.code} {error.reason}"
        raise (_PassingError if error.code in _PASSING else DownloadError)(answer) from None
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise DownloadError(f"the server's certificate is not trusted ({reason.verify_message})") from None
        raise _PassingError(str(getattr(reason, "strerror", None) or reason)) from None
    if total is not None and (done := part.stat().st_size) != total:
        raise _PassingError(f"the download stopped at {done:,} of {total:,} bytes")


def _copy(what: str, response: Any, file: IO[bytes], done: int, total: int | None, largest: int) -> int:
    """Write the response to the file; return the bytes it then has, at most slightly more than ``largest``."""
    while done <= largest and (chunk := response.read(_CHUNK)):
        done += len(chunk)
        file.write(chunk)
        _listener.get()(what, done, total)
    return done


def _check_room(part: Path, total: int | None, have: int, largest: int) -> None:
    if (total or 0) > largest:
        raise _too_much(largest)
    free = shutil.disk_usage(part.parent).free
    if total is not None and total - have > free:
        raise DownloadError(
            f"it needs {(total - have) / 1e6:,.1f} MB more and the disk of {part.parent} has {free / 1e6:,.1f} MB left"
        )


def _too_much(largest: int) -> DownloadError:
    return DownloadError(f"the server sends more than {largest:,} bytes; stopped")


def _tag_file(part: Path) -> Path:
    """File with the server's identifier (ETag or date) of the file that ``part`` is the beginning of."""
    return part.with_name(f"{part.name}.tag")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _tag_file(part).unlink(missing_ok=True)


def _open(url: str, headers: dict[str, str]) -> Any:
    import urllib.request

    class OnlyAllowed(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
            try:
                _check_scheme(newurl)
            except DownloadError:
                fp.close()
                raise
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    request = urllib.request.Request(url, headers=headers)
    return urllib.request.build_opener(OnlyAllowed).open(request, timeout=_TIMEOUT_SECONDS)


def _check_scheme(url: str) -> None:
    if urlsplit(url).scheme not in ALLOWED_SCHEMES:
        raise DownloadError(f"refused to download over {urlsplit(url).scheme or 'nothing'}: only https is used")
