"""Memory that the processes of one machine share: loader processes, and the processes of one run."""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
from collections.abc import Iterator
from multiprocessing import context, reduction
from typing import Any, NamedTuple

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

IS_SHARED = fcntl is not None  # else each process has memory of its own


class Address(NamedTuple):
    """How another process of this machine finds and recognises the memory."""

    path: str
    device: int
    inode: int


class SharedMemory:
    """Bytes, zero at first, that every process sees to which the object is handed, by a fork or by being spawned.

    It is a file without a name, in memory where the system can: nothing is left of it whatever ends the processes, and
    /dev/shm, which containers keep small, is not used. Bytes take memory once they are written.

    Args:
        size: Bytes, at least 1.
    """

    def __init__(self, size: int) -> None:
        self._open(_nameless_file(size), size)

    def _open(self, descriptor: int, size: int) -> None:
        self._descriptor = descriptor
        self.size = size
        self.bytes = mmap.mmap(descriptor, size)

    @contextlib.contextmanager
    def locked(self, place: int, *, shared: bool = False) -> Iterator[None]:
        """Lock a number against other processes; with ``shared`` only against exclusive locks.

        The lock goes when its process dies. It does not tell threads of one process apart.
        """
        if fcntl is None:
            yield
            return
        fcntl.lockf(self._descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, 1, place)
        try:
            yield
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, place)

    @property
    def address(self) -> Address:
        """For ``adopt`` in another process, as long as this one lives."""
        info = os.fstat(self._descriptor)
        return Address(f"/proc/{os.getpid()}/fd/{self._descriptor}", info.st_dev, info.st_ino)

    def adopt(self, address: Address) -> bool:
        """Use another process's memory instead of one's own; whether that was possible."""
        if address == self.address:
            return True
        try:
            descriptor = os.open(address.path, os.O_RDWR)
        except OSError:  # another container, or a system without /proc
            return False
        info = os.fstat(descriptor)
        if (info.st_dev, info.st_ino) != (address.device, address.inode):
            os.close(descriptor)
            return False
        os.close(self._descriptor)
        self._open(descriptor, info.st_size)
        return True

    def __getstate__(self) -> dict[str, Any]:
        """A process that is being started gets the same memory, and a mere copy of the object memory of its own."""
        starting = IS_SHARED and context.get_spawning_popen() is not None
        return {"size": self.size, "descriptor": reduction.DupFd(self._descriptor) if starting else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        descriptor, size = state["descriptor"], state["size"]
        self._open(_nameless_file(size) if descriptor is None else descriptor.detach(), size)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self._descriptor)


def _nameless_file(size: int) -> int:
    """The descriptor of a new file of so many zeros."""
    try:
        descriptor = os.memfd_create("maecli")
    except (AttributeError, OSError):  # not Linux, or forbidden
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor
