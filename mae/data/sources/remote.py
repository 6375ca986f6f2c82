"""Reads objects behind any URL that fsspec supports, by byte ranges and with a cache. Needs the extra ``remote``."""

from __future__ import annotations

import hashlib
import io
import os
import queue
import re
import threading
import time
from collections.abc import Callable
from typing import IO, Any, TypeVar, cast
from urllib.parse import unquote, urlsplit

from mae.data.block_cache import BLOCK_BYTES, BlockCache
from mae.errors import ConfigError, DataError, MaeError
from mae.io.download import cache_folder
from mae.io.text import shown
from mae.io.urls import public_url, split_url, without_secrets

DEFAULT_CACHE_BYTES = 20 * 10**9
BUFFER_BYTES = 1 << 16  # buffer of an open object
ATTEMPTS = 5
FIRST_PAUSE = 1.0  # seconds after the first failed attempt; doubled after each further one
ATTEMPT_SECONDS = 60.0  # time limit of one attempt
_VERSIONS = (
    "ETag", "etag", "VersionId", "generation", "md5Hash", "LastModified", "Last-Modified", "mtime", "blob_id",
    "updated",
)  # fmt: skip
_PASSING = (408, 425, 429)  # status codes below 500 for which another attempt may succeed
# botocore's errors about what the user has set; another attempt is of no use.
_SETTINGS_ERRORS = ("NoCredentialsError", "ParamValidationError", "PartialCredentialsError", "ProfileNotFound")
_BESIDE_THE_EXTRA = {"gs": " gcsfs", "gcs": " gcsfs"}  # by scheme, packages that are needed besides the extra
# By scheme of the stores whose URLs have no user and password, where credentials are read from.
_STORES = dict.fromkeys(("s3", "s3a"), "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use ~/.aws")
_STORES |= dict.fromkeys(("gs", "gcs"), "set GOOGLE_APPLICATION_CREDENTIALS") | {"hf": "set HF_TOKEN"}
_LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
Value = TypeVar("Value")


class RemoteError(DataError):
    """An object cannot be read or has changed; the run stops, because other images must not replace its images."""


class Connections:
    """The file systems of fsspec through which the objects of a scan are read.

    Each has connections of its own, so those that take several requests at a time are shared: a thousand images of one
    host would else keep a thousand connections open.
    """

    def __init__(self) -> None:
        self._systems: dict[tuple[Any, ...], Any] = {}

    def system(self, url: str, name: str) -> tuple[Any, str]:
        """The file system of an object, and the object's path in it; ``name`` is the URL in messages.

        Raises:
            ConfigError: A package for this kind of URL is not installed.
            RemoteError: There is no such kind of URL.
        """
        scheme = urlsplit(url).scheme
        try:
            import fsspec

            kind = fsspec.get_filesystem_class(scheme)
            stated = kind._get_kwargs_from_urls(url)
            # By process, because a fork cannot use its parent's connections.
            key = os.getpid(), kind, str(stated) if kind.async_impl else url
            if key not in self._systems:
                self._systems.setdefault(key, kind(**stated, **_options(scheme), skip_instance_cache=True))
        except ImportError as error:
            raise ConfigError(
                f"{shown(name)}: reading {scheme}:// needs another package ({error})",
                hint=f"pip install 'maecli[remote]'{_BESIDE_THE_EXTRA.get(scheme, '')}",
            ) from None
        except ValueError as error:
            raise RemoteError(f"{shown(name)}: {without_secrets(str(error), url)}") from None
        return self._systems[key], kind._strip_protocol(url)

    def __getstate__(self) -> dict[str, Any]:
        return {"_systems": {}}


class RemoteObject:
    """A remote object; an error is raised if it changes while it is in use.

    Args:
        url: URL of the object, with any credentials.
        cache: Cache of its blocks.
        connections: Connections that it shares with other objects; its own if None.

    Attributes:
        has_version: Whether the server gives a value that changes with the content. If not, a change is noticed by
            the size alone, and neither index nor blocks are used again by another run.

    Raises:
        ConfigError: A package for this kind of URL is not installed.
        RemoteError: The object does not exist or cannot be read.
    """

    def __init__(self, url: str, cache: BlockCache, connections: Connections | None = None) -> None:
        self.url = url
        self.name = public_url(url)
        self.cache = cache
        self._connections = connections or Connections()
        _check_address(url, self.name)
        self.stamp = self._now()
        self.size = int(self.stamp[0])
        self.has_version = len(self.stamp) > 1
        # Without a version, what is in the cache could be of another content, so nothing there is found again.
        about = (self.name, *self.stamp) if self.has_version else (self.name, *self.stamp, os.urandom(16).hex())
        self.key = hashlib.blake2b("\n".join(about).encode(), digest_size=12).hexdigest()

    def open(self) -> IO[bytes]:
        """The object as a seekable file."""
        return cast(IO[bytes], io.BufferedReader(_Ranges(self), BUFFER_BYTES))

    def read(self, start: int, end: int) -> bytes:
        """Bytes from ``start`` to ``end``, from the cache if possible.

        Raises:
            RemoteError: The object cannot be read, or has changed.
        """
        end = min(end, self.size)
        parts = []
        for number in range(start // BLOCK_BYTES, -(-end // BLOCK_BYTES)):
            first = number * BLOCK_BYTES
            parts.append(self._block(number, max(0, start - first), min(BLOCK_BYTES, end - first)))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def prefetch(self, start: int, end: int) -> None:
        """Fetch the blocks of a range of bytes into the cache."""
        for number in range(start // BLOCK_BYTES, -(-min(end, self.size) // BLOCK_BYTES)):
            if not self.cache.holds(self.key, number):
                self._block(number, 0, 0)

    def _block(self, number: int, start: int, end: int) -> bytes:
        first = number * BLOCK_BYTES
        size = min(BLOCK_BYTES, self.size - first)
        if (kept := self.cache.get(self.key, number, size, start, end)) is not None:
            return kept
        with self.cache.fetching(self.key, number):
            if (kept := self.cache.get(self.key, number, size, start, end)) is not None:
                return kept
            data = self._fetch(first, first + size)
            self.cache.put(self.key, number, data)
        return data[start:end]

    def _fetch(self, start: int, end: int) -> bytes:
        """Read bytes over the network, then check that the object has not changed."""

        def ask() -> bytes:
            system, path = self._connections.system(self.url, self.name)
            data: bytes = system.cat_file(path, start=start, end=end, **self._no_readahead)
            if len(data) != end - start:
                self._check_unchanged()
                kind = _TooMuchError if len(data) > end - start else OSError
                raise kind(f"got {len(data):,} bytes instead of {end - start:,}")
            return data

        data = self._attempt(ask)
        self._check_unchanged()
        return data

    def _check_unchanged(self) -> None:
        if (now := self._now()) != self.stamp:
            raise RemoteError(
                f"{shown(self.name)} has changed since its images were found "
                f"({' '.join(self.stamp)} then, {' '.join(now)} now)",
                hint="start the run again: it then scans the images again",
            )

    def _now(self) -> tuple[str, ...]:
        """The object's size, and the server's values that change with its content, such as the ETag."""

        def ask() -> tuple[str, ...]:
            system, path = self._connections.system(self.url, self.name)
            system.invalidate_cache()
            info = system.info(path)
            if info.get("type") == "directory":
                raise RemoteError(f"{shown(self.name)} is a folder", hint="give the URLs of its archives or images")
            if not isinstance(info.get("size"), int):
                reason = "the server does not give its size"
                raise RemoteError(f"{shown(self.name)} cannot be read: {reason}", hint="download it first")
            return (str(info["size"]), *(str(info[name]) for name in _VERSIONS if info.get(name) is not None))

        return self._attempt(ask)

    def _attempt(self, ask: Callable[[], Value]) -> Value:
        """Make a request, up to ``ATTEMPTS`` times with growing pauses."""
        pause = FIRST_PAUSE
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return _within(ATTEMPT_SECONDS, ask)
            except Exception as caught:  # each kind of store has exceptions of its own
                error = _behind(caught, self.url)
                if isinstance(error, MaeError):
                    raise error from None
                if attempt == ATTEMPTS or not _may_pass(error):
                    raise self._explained(error, attempt) from None
            time.sleep(pause)
            pause *= 2
        raise AssertionError("unreachable")

    def _explained(self, error: Exception, attempts: int) -> RemoteError:
        if isinstance(error, FileNotFoundError):
            reason = "there is no such object"
        elif isinstance(error, PermissionError):
            reason = "access is denied"
        elif isinstance(error, TimeoutError):
            reason = f"no response within {ATTEMPT_SECONDS:g} seconds"
        else:
            status = _status(error)
            words = without_secrets(" ".join(str(error).split()), self.url)
            reason = f"the server answers {status}" if status else f"{words or type(error).__name__}"[:300]
        after = f", after {attempts} attempts" if attempts > 1 else ""
        hint = None
        if isinstance(error, FileNotFoundError) and "*" in self.name:
            hint = "* is not expanded in a URL; train-{0000..0099}.tar names a hundred shards"
        elif isinstance(error, _TooMuchError):
            hint = "the server seems to ignore byte ranges: download the file first"
        elif _status(error) in (401, 403) and urlsplit(self.url).scheme in ("http", "https"):
            hint = "is the URL complete? A run keeps no signature: resume with maecli pretrain URL --resume RUN"
        return RemoteError(f"{shown(self.name)} cannot be read: {shown(reason)}{after}", hint=hint)

    @property
    def _no_readahead(self) -> dict[str, str]:
        """Options against the readahead of the Hugging Face Hub's file system: 5 MB after each block."""
        return {"cache_type": "none"} if urlsplit(self.url).scheme == "hf" else {}


class _TooMuchError(OSError):
    """The response has more bytes than were requested."""


class _Ranges(io.RawIOBase):
    """A remote object as an unbuffered file."""

    def __init__(self, remote: RemoteObject) -> None:
        self._remote = remote
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._remote.size}[whence]
        if base + offset < 0:
            raise ValueError("negative seek position")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer; returns the number of bytes."""
        view = memoryview(buffer).cast("B")
        end = min(self._at + len(view), self._remote.size)
        if end <= self._at:
            return 0
        data = self._remote.read(self._at, end)
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


def remote_cache(most_bytes: int | None = None) -> BlockCache:
    """The cache of blocks in the user's cache folder."""
    return BlockCache(cache_folder() / "blocks", most_bytes or DEFAULT_CACHE_BYTES)


def suffix_of(url: str) -> str:
    """Suffix of a URL's path in lower case, such as ``.tar``."""
    return os.path.splitext(unquote(split_url(url)[1].path))[1].lower()


def _check_address(url: str, name: str) -> None:
    user, parts = split_url(url)
    if user and (parts.scheme in _STORES or re.search("[/?#]", user)):
        raise RemoteError(
            f"{shown(name)}: the credentials before @ in the URL cannot be used",
            hint=_STORES.get(
                parts.scheme, "write / as %2F, ? as %3F, # as %23 and @ as %40 in a password, and @ as %40 after it"
            ),
        )
    _check_encrypted(url, name)


def _check_encrypted(url: str, name: str) -> None:
    parts = split_url(url)[1]
    if parts.scheme == "http" and parts.hostname not in _LOCAL_HOSTS:
        raise RemoteError(
            f"{shown(name)}: http is refused, because the data could be changed on its way",
            hint="give an https URL",
        )


async def _check_redirect(session: Any, context: Any, redirect: Any) -> None:
    """Refuse redirects from https to http."""
    target = redirect.response.headers.get("Location", "")
    if urlsplit(target).scheme:
        _check_encrypted(target, public_url(target))


def _options(scheme: str) -> dict[str, Any]:
    """Time limits of a kind of URL, and of http the check of redirects."""
    if scheme in ("http", "https"):
        import aiohttp

        trace = aiohttp.TraceConfig()
        trace.on_request_redirect.append(_check_redirect)
        timeout = aiohttp.ClientTimeout(total=ATTEMPT_SECONDS)
        return {"client_kwargs": {"timeout": timeout, "trust_env": True, "trace_configs": [trace]}}
    if scheme in ("s3", "s3a"):
        return {"config_kwargs": {"connect_timeout": 10, "read_timeout": 30, "retries": {"max_attempts": 1}}}
    return {}


def _may_pass(error: Exception) -> bool:
    """Whether another attempt may succeed."""
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
        return False
    if type(error).__name__ in _SETTINGS_ERRORS:
        return False
    status = _status(error)
    return status is None or status >= 500 or status in _PASSING


def _behind(error: Exception, url: str) -> Exception:
    """The error itself, or its cause where fsspec raises FileNotFoundError for every failure to ask for an object."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or not isinstance(cause, Exception):
        return error
    return cause if urlsplit(url).scheme in ("http", "https") and _status(cause) not in (404, 410) else error


def _status(error: Exception) -> int | None:
    """The status code of the answer that an error is about; botocore's error is the cause of that of s3fs."""
    status = getattr(error, "status", None)
    if status is None and isinstance(response := getattr(error.__cause__, "response", None), dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status if isinstance(status, int) else None


def _within(seconds: float, ask: Callable[[], Value]) -> Value:
    """Call a function with a time limit; a call that hangs remains in its thread."""
    answers: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((True, ask()))
        except BaseException as error:
            answers.put((False, error))

    threading.Thread(target=run, name="remote read", daemon=True).start()
    try:
        good, value = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError from None
    if not good:
        raise value
    return cast(Value, value)
