"""Memory shared between processes of one machine: loader processes, and the processes of a run."""

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

IS_SHARED = fcntl is not None  # if False, each process has its own memory


class Address(NamedTuple):
    """Identifies the memory for another process of this machine."""

    path: str
    device: int
    inode: int


class SharedMemory:
    """Zero-initialised bytes, shared with every process that gets the object by fork or by pickling at its start.

    It is an unnamed file, in memory if the system supports it (memfd): it vanishes with its last process, and does not
    need /dev/shm, which is small in containers. Memory is allocated when bytes are first written.

    Args:
        size: Size in bytes, at least 1.
    """

    def __init__(self, size: int) -> None:
        self._open(_nameless_file(size), size)

    def _open(self, descriptor: int, size: int) -> None:
        self._descriptor = descriptor
        self.size = size
        self.bytes = mmap.mmap(descriptor, size)

    @contextlib.contextmanager
    def locked(self, place: int, *, shared: bool = False) -> Iterator[None]:
        """Hold the lock number ``place`` against other processes; with ``shared``, against exclusive locks only.

        The lock is released when its process dies. It does not exclude other threads of the same process.
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
        """The address for ``adopt`` in another process; valid while this process lives."""
        info = os.fstat(self._descriptor)
        return Address(f"/proc/{os.getpid()}/fd/{self._descriptor}", info.st_dev, info.st_ino)

    def adopt(self, address: Address) -> bool:
        """Replace this memory by another process's memory; return whether that was possible."""
        if address == self.address:
            return True
        try:
            descriptor = os.open(address.path, os.O_RDWR)
        except OSError:  # the process is in another container, or the system has no /proc
            return False
        info = os.fstat(descriptor)
        if (info.st_dev, info.st_ino) != (address.device, address.inode):
            os.close(descriptor)
            return False
        os.close(self._descriptor)
        self._open(descriptor, info.st_size)
        return True

    def __getstate__(self) -> dict[str, Any]:
        """Pickle for a process that is being started, which shares the memory; any other copy gets new memory."""
        starting = IS_SHARED and context.get_spawning_popen() is not None
        return {"size": self.size, "descriptor": reduction.DupFd(self._descriptor) if starting else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        descriptor, size = state["descriptor"], state["size"]
        self._open(_nameless_file(size) if descriptor is None else descriptor.detach(), size)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self._descriptor)


def _nameless_file(size: int) -> int:
    """The descriptor of a new unnamed file of ``size`` zero bytes."""
    try:
        descriptor = os.memfd_create("maecli")
    except (AttributeError, OSError):  # not Linux, or forbidden
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor
