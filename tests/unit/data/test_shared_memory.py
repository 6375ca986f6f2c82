"""Memory shared by forked and spawned processes, freed when the last one ends."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mae.data.shared_memory import Address, SharedMemory, _nameless_file

FORK = multiprocessing.get_context("fork")


def forked(act: Callable[[], Any]) -> int | None:
    """Run a function in another process, and wait for it."""
    process = FORK.Process(target=act)
    process.start()
    process.join(60)
    return process.exitcode


def put(memory: SharedMemory, place: int, value: int) -> None:
    memory.bytes[place] = value


def test_a_forked_process_shares_it() -> None:
    memory = SharedMemory(10)
    assert bytes(memory.bytes) == bytes(10)
    assert forked(lambda: put(memory, 3, 7)) == 0
    assert memory.bytes[3] == 7


def test_a_copy_has_memory_of_its_own() -> None:
    memory = SharedMemory(10)
    copy = pickle.loads(pickle.dumps(memory))
    put(copy, 3, 7)
    assert (memory.bytes[3], copy.bytes[3], copy.size) == (0, 7, 10)


def test_a_process_of_the_same_run_adopts_it() -> None:
    memory = SharedMemory(10)
    other = SharedMemory(20)
    assert other.adopt(memory.address)
    assert other.size == 10
    put(other, 3, 7)
    assert memory.bytes[3] == 7
    assert other.adopt(memory.address)
    assert memory.adopt(memory.address)

    def adopt_there() -> None:
        own = SharedMemory(5)
        assert own.adopt(memory.address)
        put(own, 4, 8)

    assert forked(adopt_there) == 0
    assert memory.bytes[4] == 8


def test_a_stranger_is_not_adopted() -> None:
    memory, other = SharedMemory(10), SharedMemory(10)
    gone = Address("/proc/1/fd/99999", 1, 2)
    wrong = Address(memory.address.path, memory.address.device, memory.address.inode + 1)
    assert not other.adopt(gone)
    assert not other.adopt(wrong)
    put(other, 0, 1)
    assert memory.bytes[0] == 0


def test_a_lock_keeps_others_out_until_its_process_dies() -> None:
    memory = SharedMemory(10)
    ready, free = FORK.Event(), FORK.Event()

    def hold() -> None:
        with memory.locked(5):
            ready.set()
            threading.Event().wait()

    def wait_for_it() -> None:
        with memory.locked(5):
            free.set()

    holder, waiter = FORK.Process(target=hold), FORK.Process(target=wait_for_it)
    holder.start()
    assert ready.wait(60)
    waiter.start()
    with memory.locked(6), memory.locked(7, shared=True):  # another place
        pass
    with pytest.raises(OSError, match=r"unavailable|denied"):
        fcntl.lockf(memory._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 5)
    assert not free.is_set()
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    assert free.wait(60)
    for process in (holder, waiter):
        process.join(60)


def test_nothing_is_left_open() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        memory = SharedMemory(10)
        memory.adopt(SharedMemory(10).address)
        pickle.loads(pickle.dumps(memory))
    del memory
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_where_there_is_no_memfd_a_file_without_a_name_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    descriptor = _nameless_file(10)
    assert os.fstat(descriptor).st_size == 10
    assert os.fstat(descriptor).st_nlink == 0
    os.close(descriptor)
    memory = SharedMemory(10)
    assert forked(lambda: put(memory, 3, 7)) == 0
    assert memory.bytes[3] == 7
