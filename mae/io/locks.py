"""Locks between processes, by filelock: on every system, and never longer than the process that holds them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def take_lock(path: Path, *, wait: bool) -> Callable[[], None]:
    """Keep others out, in this process or another, until the lock is released or this process ends.

    Processes that this one forks, such as a loader's, do not hold it on: filelock (from 3.30.3 on) closes it in them.
    On a file system without locks the lock has no effect.

    Args:
        path: The lock's file. It is made where it is missing, and stays: another process may be waiting at it.
        wait: Until the holder releases it.

    Returns:
        What releases it.

    Raises:
        TimeoutError: Somebody else holds it, and ``wait`` is not set.
        OSError: The file cannot be made.
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
