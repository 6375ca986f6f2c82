"""URLs of data; their secrets (passwords, signatures) are never written or shown."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from mae.options import SLASH_KEPT

# ``Path`` reduces the double slash of a URL to one, and an absolute path has the current folder before it.
_URL = re.compile(r"(?:^|/)([a-zA-Z][a-zA-Z0-9+.-]+):/+([^/].*)$", re.DOTALL)
_ADDRESS = re.compile(r"(localhost|[0-9.]+|\[[0-9a-fA-F:.]*\])(:[0-9]*)?")  # of a machine, perhaps with a port
_WEB = ("http", "https")  # only these have ports and fragments; ``#`` is a part of other stores' names


def url_of(source: Path) -> str | None:
    """The URL of a source, with its scheme in lower case; None if it is a local path."""
    # Path.exists raises an error if a name is too long.
    match = None if os.path.exists(source) else _URL.search(source.as_posix())  # noqa: PTH110
    return f"{match[1].lower()}://{match[2].replace(SLASH_KEPT, '')}" if match else None


def split_url(url: str) -> tuple[str, SplitResult]:
    """Credentials of a URL, such as ``user:password``, and the parts of the URL without them.

    A password may hold ``/``, ``?``, ``#`` or ``@``, although they should be written as ``%2F``, ``%3F``, ``%23`` and
    ``%40``. So everything before the last ``@`` counts as credentials if a ``:`` stands before the path, except after
    the port of an address in digits: ``https://name:12/a@b`` can be a password, ``https://127.0.0.1:12/a@b`` not.
    """
    scheme, _, rest = url.partition("://")
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    user, at, _ = authority.rpartition("@")
    if ":" in authority and not (scheme in _WEB and _ADDRESS.fullmatch(authority)):
        user, at, _ = rest.rpartition("@")
        if not at and not (scheme in _WEB and re.search(":[0-9]*$", authority)):
            user = authority
    rest = rest[len(user) + len(at) :]
    return user, urlsplit(f"{scheme}://{rest}", allow_fragments=scheme in _WEB)


def public_url(url: str) -> str:
    """A URL without user, password, query and fragment, which may give access."""
    _, parts = split_url(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"


def public_name(source: Path) -> str:
    """Name of a source for files and messages: a URL without its secrets, or the path."""
    url = url_of(source)
    return str(source) if url is None else public_url(url)


def without_secrets(text: str, url: str) -> str:
    """Remove the secrets of ``url`` from a message that may quote the URL or a part of it."""
    user, parts = split_url(url)
    for secret in (parts.query, parts.fragment, user, user.partition(":")[2]):
        if len(secret) > 3:
            text = text.replace(secret, "...")
    return re.sub(r"\?[^\s'\")]*", "?...", text)
