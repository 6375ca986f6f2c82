"""Cached results of earlier scans, so that a million names are read once and not at every start.

A cached listing is used only if its folder (or archive file) has the same inode, size and times as when it was read.
The times of a folder change when a name is added, removed or renamed. An unreadable file is checked again if its own
time or size has changed. If an image was overwritten with something else, decoding detects it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from typing import Any

import PIL

from mae.io.download import cache_folder
from mae.io.files import write_atomically

VERSION = 2
# Scans of fewer files take only a second or two, so they are not cached.
WORTH_KEEPING = 5_000
# A folder that changed less than this before it was read may change again without a new time.
SETTLED_NS = 2_000_000_000


def stamp(info: os.stat_result) -> list[int]:
    """Values that change when a folder's names or a file's content change."""
    return [info.st_dev, info.st_ino, info.st_mtime_ns, info.st_ctime_ns, info.st_size]


def as_text(name: bytes) -> str:
    """A name of any bytes as text for JSON."""
    return name.decode("latin-1")


def as_bytes(text: str) -> bytes:
    """The inverse of ``as_text``."""
    return text.encode("latin-1")


class ScanIndex:
    """The cached listings of a source.

    Args:
        source: Path of a folder, with all folders below it, or of an archive.
    """

    def __init__(self, source: bytes) -> None:
        name = hashlib.blake2b(os.path.abspath(source), digest_size=16).hexdigest()
        self.path = cache_folder() / "scans" / f"{name}.json"
        self._known = self._read()
        self._seen: dict[str, Any] = {}
        self._changed = 0

    def get(self, path: bytes, info: os.stat_result) -> Any:
        """The cached value of a folder or archive; None if there is none or it is outdated."""
        entry = self._known.get(as_text(path))
        if entry is None or entry[0] != stamp(info):
            return None
        self._seen[as_text(path)] = entry
        return entry[1]

    def put(self, path: bytes, info: os.stat_result, values: Any, files: int) -> None:
        """Cache a value for a folder or archive; ``files`` is the number of files that were examined for it."""
        self._changed += files
        if max(info.st_mtime_ns, info.st_ctime_ns) < time.time_ns() - SETTLED_NS:
            self._seen[as_text(path)] = [stamp(info), values]

    def save(self) -> None:
        """Write the cache if enough files were examined; errors in writing it are ignored."""
        if self._changed < WORTH_KEEPING:
            return
        text = json.dumps({"version": VERSION, "pillow": PIL.__version__, "listings": self._seen})
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, lambda file: file.write(text.encode()))

    def _read(self) -> dict[str, Any]:
        try:
            kept = json.loads(self.path.read_bytes())
        except (OSError, ValueError):
            return {}
        if not isinstance(kept, dict) or (kept.get("version"), kept.get("pillow")) != (VERSION, PIL.__version__):
            return {}
        return dict(kept["listings"])
