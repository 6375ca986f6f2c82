"""Blocks of remote objects on the disk: bounded, least recently used out first, shared by all processes."""

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
LEAST_FREE = 256 * 2**20  # bytes of the disk that are left to others
_CHECK_BYTES = 4  # behind a block, its checksum
_SHARE_BETWEEN = 200  # a process looks at the sizes after it has written so small a share of what may be there
_SHARE_KEPT = 0.9  # when it removes some: the other processes write meanwhile
_LOCKS = 64


class BlockCache:
    """Files of a folder, one for each block, named by what it is a block of.

    What cannot be read or written is not cached, and no error: whoever asked fetches the block again.

    Args:
        folder: Made when it is needed, also when it was deleted meanwhile.
        most_bytes: What all blocks may take.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self.folder = folder
        self.most_bytes = most_bytes
        self._checked: set[tuple[str, int]] = set()  # by this process, since it began
        self._written: int | None = None  # since the sizes were last looked at; None before that

    def get(self, key: str, number: int, size: int, start: int, end: int) -> bytes | None:
        """Bytes of a block, or None where they are not at hand.

        Args:
            key: Of the object.
            number: Of the block.
            size: Of the block.
            start, end: Which of its bytes.
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
                    os.utime(path)
                    return data[start:end]
                file.seek(start)
                part = file.read(end - start)
                os.utime(path)
        except ValueError:
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        except OSError:
            return None
        return part if len(part) == end - start else None

    def holds(self, key: str, number: int) -> bool:
        """Whether a block is there."""
        return self._path(key, number).exists()

    @contextlib.contextmanager
    def fetching(self, key: str, number: int) -> Iterator[None]:
        """Keep other processes from fetching the same block meanwhile."""
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
        """Keep a block, if there is room."""
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
        """Remove the blocks that were not used for longest, where they are more than may be or less is wanted."""
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
            total -= size

    def _path(self, key: str, number: int) -> Path:
        return self.folder / key / f"{number:08d}"
