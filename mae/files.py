"""Writing files so that a crash or a full disk leaves the old file or the new one, never half of one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import IO


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
