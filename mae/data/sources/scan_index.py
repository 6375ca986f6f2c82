"""Cached results of earlier scans, so that a million names are read once and not at every start.

A listing is taken over only if its folder, or an archive's if the file, is the very one that was read: the same
inode with the same times of change. A folder's time changes when a name is added, removed or renamed. What was
unreadable is checked again when its own time or size changed; an image that was overwritten by something else is
found when it is decoded.
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

VERSION = 1
# Fewer files than these are scanned in a second or two.
WORTH_KEEPING = 5_000
# A folder that changed so shortly before it was read may change again within the same tick of its clock.
SETTLED_NS = 2_000_000_000


def stamp(info: os.stat_result) -> list[int]:
    """What changes when a folder's names or a file's content do."""
    return [info.st_dev, info.st_ino, info.st_mtime_ns, info.st_ctime_ns, info.st_size]


def settled(info: os.stat_result) -> bool:
    """Whether the last change is long enough ago to trust the times."""
    return max(info.st_mtime_ns, info.st_ctime_ns) < time.time_ns() - SETTLED_NS


def as_text(name: bytes) -> str:
    """A name, of whatever bytes, as JSON can hold it."""
    return name.decode("latin-1")


def as_bytes(text: str) -> bytes:
    """The inverse of ``as_text``."""
    return text.encode("latin-1")


class ScanIndex:
    """The kept listings below one source.

    Args:
        source: A folder or an archive.
    """

    def __init__(self, source: bytes) -> None:
        name = hashlib.blake2b(os.path.abspath(source), digest_size=16).hexdigest()
        self.path = cache_folder() / "scans" / f"{name}.json"
        self._known = self._read()
        self._seen: dict[str, Any] = {}
        self._changed = 0

    def get(self, path: bytes, info: os.stat_result) -> Any:
        """What was kept for a folder or an archive, if it is still true; else None."""
        entry = self._known.get(as_text(path))
        if entry is None or entry[0] != stamp(info):
            return None
        self._seen[as_text(path)] = entry
        return entry[1]

    def put(self, path: bytes, info: os.stat_result, values: Any, files: int) -> None:
        """Keep something for a folder or an archive; ``files`` is how many had to be examined for it."""
        self._changed += files
        if settled(info):
            self._seen[as_text(path)] = [stamp(info), values]

    def save(self) -> None:
        """Write what is worth it; a cache that cannot be written is no error."""
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
