"""Addresses of objects: what of them is a secret is never written or shown. Standard library only."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

# A path holds a URL with one of its slashes, and behind the current folder where it was made absolute.
_URL = re.compile(r"(?:^|/)([a-z][a-z0-9+.-]+):/+([^/].*)$", re.DOTALL)


def url_of(source: Path) -> str | None:
    """The URL that a source is, or None for a place on this machine."""
    # Not Path.exists, which raises for a name that is too long.
    match = None if os.path.exists(source) else _URL.search(str(source))  # noqa: PTH110
    return f"{match[1]}://{match[2]}" if match else None


def public_url(url: str) -> str:
    """A URL without what may give access: user, password, and all behind the path, such as a signature."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def public_name(source: Path) -> str:
    """How a source is called where others may read it: a URL without its secrets, or the path."""
    url = url_of(source)
    return str(source) if url is None else public_url(url)


def without_secrets(text: str, url: str) -> str:
    """A message that may quote a URL, or a part of it, without the URL's secrets."""
    parts = urlsplit(url)
    for secret in (parts.query, parts.fragment, parts.netloc.rpartition("@")[0], parts.password or ""):
        if len(secret) > 3:
            text = text.replace(secret, "...")
    return re.sub(r"\?[^\s'\")]*", "?...", text)
