"""A disk cache of blocks of remote objects: bounded, evicts the least recently used, shared by all processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

from mae.io.files import temporary_beside
from mae.io.locks import take_lock

BLOCK_BYTES = 4 * 2**20
LEAST_FREE = 256 * 2**20  # bytes of the disk that the cache leaves free
_CHECK_BYTES = 4  # length of the checksum after each block
_SHARE_BETWEEN = 200  # a process checks the total size after writing this fraction (1/200) of the limit
_SHARE_KEPT = 0.9  # fraction of the limit that is kept on eviction, since other processes go on writing
_LOCKS = 64


class BlockCache:
    """A folder with one file per block, named by the object's key and the block's number.

    A block that cannot be read or written is not cached; no error is raised, and the caller fetches the block again.

    Args:
        folder: Folder of the files; created when needed.
        most_bytes: Limit of the size of all blocks together, in bytes.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self.folder = folder
        self.most_bytes = most_bytes
        self._checked: set[tuple[str, int]] = set()  # blocks whose checksum this process has verified
        self._written: int | None = None  # bytes since the total size was last checked; None before the first check

    def get(self, key: str, number: int, size: int, start: int, end: int) -> bytes | None:
        """Bytes of a block, or None if the block is not in the cache.

        Args:
            key: Key of the object.
            number: Number of the block.
            size: Size of the block in bytes.
            start, end: Range of bytes within the block.
        """
        path = self._path(key, number)
        try:
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_size != size + _CHECK_BYTES:
                    raise ValueError
                if (key, number) not in self._checked:
                    data = file.read(size)
                    if zlib.crc32(data) != int.from_bytes(file.read(_CHECK_BYTES), "little"):
                        raise ValueError
                    self._checked.add((key, number))
                    _mark_used(path)
                    return data[start:end]
                file.seek(start)
                part = file.read(end - start)
                _mark_used(path)
        except ValueError:
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        except OSError:
            return None
        return part if len(part) == end - start else None

    def holds(self, key: str, number: int) -> bool:
        """Whether a block is in the cache."""
        return self._path(key, number).exists()

    @contextlib.contextmanager
    def fetching(self, key: str, number: int) -> Iterator[None]:
        """A context manager that prevents other processes from fetching the same block at the same time."""
        release = None
        with contextlib.suppress(OSError):
            locks = self.folder / "locks"
            locks.mkdir(parents=True, exist_ok=True)
            release = take_lock(locks / str(zlib.crc32(f"{key}/{number}".encode()) % _LOCKS), wait=True)
        try:
            yield
        finally:
            if release is not None:
                release()

    def put(self, key: str, number: int, data: bytes) -> None:
        """Store a block, if there is room."""
        path = self._path(key, number)
        if self._written is None or self._written > self.most_bytes // _SHARE_BETWEEN:
            self.make_room()
        temporary = temporary_beside(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(path.parent).free < LEAST_FREE + len(data):
                self.make_room(share=0.5)
                if shutil.disk_usage(path.parent).free < LEAST_FREE + len(data):
                    return
            with temporary.open("xb") as file:
                file.write(data)
                file.write(zlib.crc32(data).to_bytes(_CHECK_BYTES, "little"))
            temporary.replace(path)
            self._written = (self._written or 0) + len(data)
        except OSError:  # a full disk, or a folder that is being deleted
            with contextlib.suppress(OSError):
                temporary.unlink()

    def make_room(self, share: float = _SHARE_KEPT) -> None:
        """Remove the least recently used blocks until the rest takes at most ``share`` of the limit."""
        self._written = 0
        blocks = []
        with contextlib.suppress(OSError):
            for folder in os.scandir(self.folder):
                if folder.name == "locks" or not folder.is_dir():
                    continue
                with contextlib.suppress(OSError), os.scandir(folder) as entries:
                    blocks += [(info.st_mtime_ns, info.st_size, one.path) for one in entries if (info := one.stat())]
        total = sum(size for _, size, _ in blocks)
        if total <= self.most_bytes - self.most_bytes // _SHARE_BETWEEN and share == _SHARE_KEPT:
            return
        wanted = int(share * min(total, self.most_bytes))
        for _, size, path in sorted(blocks):
            if total <= wanted:
                break
            with contextlib.suppress(OSError):
                Path(path).unlink()
                Path(path).parent.rmdir()  # fails while it holds other blocks
            total -= size

    def _path(self, key: str, number: int) -> Path:
        return self.folder / key / f"{number:08d}"


def _mark_used(path: Path) -> None:
    with contextlib.suppress(OSError):  # another user's file, or a disk that is mounted for reading
        os.utime(path)
