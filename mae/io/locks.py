"""Locks between processes, by filelock; they are released when the process that holds them ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def take_lock(path: Path, *, wait: bool) -> Callable[[], None]:
    """Take an exclusive lock, which lasts until it is released or this process ends.

    Forked processes, such as loader processes, do not keep it: filelock (3.30.3 and later) closes it in them. On a file
    system without locks it has no effect.

    Args:
        path: The lock file. It is created if missing, and not deleted, since another process may be waiting for it.
        wait: Whether to wait until the holder releases it.

    Returns:
        A function that releases the lock.

    Raises:
        TimeoutError: Another holder has the lock, and ``wait`` is False.
        OSError: The lock file cannot be created.
    """
    import filelock

    path.touch()
    lock = filelock.FileLock(path, timeout=-1 if wait else 0, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise
    except OSError:  # a file system without locks
        return lambda: None
    return lock.release
