"""URLs of data; their secrets (passwords, signatures) are never written or shown. Standard library only."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

# ``Path`` reduces the double slash of a URL to one, and an absolute path has the current folder before it.
_URL = re.compile(r"(?:^|/)([a-z][a-z0-9+.-]+):/+([^/].*)$", re.DOTALL)


def url_of(source: Path) -> str | None:
    """The URL of a source; None if it is a local path."""
    # Path.exists raises an error if a name is too long.
    match = None if os.path.exists(source) else _URL.search(str(source))  # noqa: PTH110
    return f"{match[1]}://{match[2]}" if match else None


def public_url(url: str) -> str:
    """A URL without user, password, query and fragment, which may give access."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def public_name(source: Path) -> str:
    """Name of a source for files and messages: a URL without its secrets, or the path."""
    url = url_of(source)
    return str(source) if url is None else public_url(url)


def without_secrets(text: str, url: str) -> str:
    """Remove the secrets of ``url`` from a message that may quote the URL or a part of it."""
    parts = urlsplit(url)
    for secret in (parts.query, parts.fragment, parts.netloc.rpartition("@")[0], parts.password or ""):
        if len(secret) > 3:
            text = text.replace(secret, "...")
    return re.sub(r"\?[^\s'\")]*", "?...", text)
