"""A row group is decoded once for all processes that need its rows."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from mae.data.group_cache import GroupCache

FORK = multiprocessing.get_context("fork")


def rows_of(group: int, rows: int = 10) -> list[bytes | None]:
    return [None if row == 3 else bytes([group, row]) * (group + row) for row in range(rows)]


class Counted:
    """Decodes groups, and counts the calls in all processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def __call__(self, group: int) -> list[bytes | None]:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        os.write(descriptor, bytes([group]))
        os.close(descriptor)
        return rows_of(group)

    @property
    def decoded(self) -> list[int]:
        return list(self.path.read_bytes())


@pytest.fixture
def counted(tmp_path: Path) -> Counted:
    return Counted(tmp_path / "count")


def read(cache: GroupCache, group: int, row: int, counted: Counted) -> bytes | None:
    return cache.row(group, row, lambda: counted(group))


def test_rows_are_what_was_decoded(counted: Counted) -> None:
    cache = GroupCache(6, 10_000)
    for group in (5, 0, 2):
        assert [read(cache, group, row, counted) for row in range(10)] == rows_of(group)
    assert [read(cache, 0, row, counted) for row in (9, 3, 0)] == [rows_of(0)[row] for row in (9, 3, 0)]
    assert counted.decoded == [5, 0, 2]


def test_the_first_goes_when_there_is_no_room(counted: Counted) -> None:
    cache = GroupCache(9, 800)  # two or three of about 300
    for group in range(9):
        assert read(cache, group, 1, counted) == rows_of(group)[1]
    assert read(cache, 8, 2, counted) == rows_of(8)[2]
    assert read(cache, 7, 2, counted) == rows_of(7)[2]
    assert counted.decoded == list(range(9))
    assert read(cache, 0, 2, counted) == rows_of(0)[2]
    assert counted.decoded[9:] == [0]


def test_a_group_that_is_too_large_is_not_kept(counted: Counted) -> None:
    cache = GroupCache(3, 100)
    assert [read(cache, 2, row, counted) for row in range(2)] == rows_of(2)[:2]
    assert counted.decoded == [2, 2]


def test_a_group_that_cannot_be_decoded_holds_nobody_up(counted: Counted) -> None:
    cache = GroupCache(3, 1000)

    def fail() -> list[bytes | None]:
        raise ValueError("damaged")

    for _ in range(2):
        with pytest.raises(ValueError, match="damaged"):
            cache.row(1, 0, fail)
    assert read(cache, 1, 4, counted) == rows_of(1)[4]


@pytest.mark.parametrize("capacity", [100_000, 1500])
def test_processes_that_need_a_group_at_once_decode_it_once(counted: Counted, capacity: int) -> None:
    """The rows are also right if the processes evict each other's groups."""
    cache = GroupCache(40, capacity)
    start = FORK.Event()

    def work(first: int) -> None:
        start.wait()
        for group in range(40):
            for row in range(first % 2, 10):
                assert read(cache, group, row, counted) == rows_of(group)[row]

    processes = [FORK.Process(target=work, args=(part,)) for part in range(4)]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    if capacity == 100_000:
        assert sorted(counted.decoded) == list(range(40))
