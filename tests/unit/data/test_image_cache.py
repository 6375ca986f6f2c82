"""Cached images are those that were decoded, visible to every process, and within one memory limit."""

from __future__ import annotations

import multiprocessing

import numpy as np
import pytest

from mae.data.augment import FullImage
from mae.data.decoding.orientation import TURNS
from mae.data.image_cache import ImageCache

FORK = multiprocessing.get_context("fork")


def image(number: int, rows: int = 5) -> FullImage:
    pixels = np.random.default_rng(number).integers(0, 256, (rows, 7, 3), np.uint8)
    return FullImage(pixels, TURNS[1 + number % 8])


def same(kept: FullImage | None, expected: FullImage) -> bool:
    return kept is not None and kept.turn == expected.turn and np.array_equal(kept.pixels, expected.pixels)


def test_what_was_kept_is_found() -> None:
    cache = ImageCache(9, 10_000)
    assert cache.get(4) is None
    for number in (4, 0, 8):
        cache.keep(number, image(number))
    assert all(same(cache.get(number), image(number)) for number in (4, 0, 8))
    assert cache.get(5) is None
    cache.keep(4, image(5))  # the first stays
    assert same(cache.get(4), image(4))


def test_all_together_stay_within_the_limit() -> None:
    each = 32 + 112  # a header, and 5 x 7 x 3 bytes rounded up
    cache = ImageCache(20, 8 * 21 + 3 * each + 40)
    for number in range(20):
        cache.keep(number, image(number))
    assert [number for number in range(20) if cache.get(number)] == [0, 1, 2]
    assert cache.room == 8
    cache.keep(9, image(9, rows=0))
    assert cache.memory.size == 8 * 21 + 3 * each + 40


@pytest.mark.parametrize("limit", [1, 8, 8 * 10, 8 * 11 + 3])
def test_a_limit_that_holds_no_index_keeps_nothing(limit: int) -> None:
    cache = ImageCache(10, limit)
    assert cache.room == 0
    cache.keep(9, image(9))
    assert cache.get(9) is None


def test_a_spawned_process_keeps_for_all() -> None:
    cache = ImageCache(9, 10_000)
    process = multiprocessing.get_context("spawn").Process(target=cache.keep, args=(4, image(4)))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert same(cache.get(4), image(4))


def test_processes_that_keep_at_once_do_not_disturb_each_other() -> None:
    cache = ImageCache(300, 10**6)
    start = FORK.Event()

    def keep(first: int) -> None:
        start.wait()
        for number in range(300):
            cache.keep((first + number) % 300, image((first + number) % 300))

    processes = [FORK.Process(target=keep, args=(75 * part,)) for part in range(4)]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert all(same(cache.get(number), image(number)) for number in range(300))


def test_room_is_taken_by_one_process_at_a_time() -> None:
    """Otherwise two processes could write their images to the same place at the same time."""
    cache = ImageCache(9, 10_000)
    room, begun = cache.room, FORK.Event()

    def keep() -> None:
        begun.set()
        cache.keep(4, image(4))

    process = FORK.Process(target=keep)
    with cache.memory.locked(0):
        process.start()
        assert begun.wait(60)
        process.join(0.3)
        assert process.is_alive()
        assert cache.room == room
    process.join(60)
    assert process.exitcode == 0
    assert same(cache.get(4), image(4))
