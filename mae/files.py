"""Files: writing them so that a crash leaves the old one or the new one, and showing any name on one line."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import IO


def shown(name: str | Path) -> str:
    r"""A name on one line: bytes that are no UTF-8 as ``\xff``, a new line as ``\n``, nothing that a terminal obeys."""
    text = str(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file beside its target, flush it to the disk, and move it into place.

    Args:
        path: The target; its folder must exist.
        write: Called with the open binary file.

    Raises:
        OSError: The file cannot be written; the target is as it was.
    """
    # Not NamedTemporaryFile: its 0600 would survive the move and lock a lab's colleagues out.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
