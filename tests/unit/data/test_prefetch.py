"""Fetching ahead: in order, within its limit, despite failures, and it ends with the data."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mae.data.prefetch import THREADS, Prefetcher
from mae.data.sampler import Draw
from mae.data.sources.base import ImageSource
from mae.errors import DataError


class Source(ImageSource):
    def __init__(self) -> None:
        self.fetched: set[int] = set()

    def __len__(self) -> int:
        return 100

    def name(self, index: int) -> Path:
        return Path(str(index))

    def open(self, index: int) -> io.BytesIO:
        raise AssertionError

    def digest(self) -> str:
        return ""

    def prefetch(self, index: int) -> None:
        if index == 3:
            raise DataError("gone")
        self.fetched.add(index)


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


BATCHES = [[Draw(0, 2 * number), Draw(0, 2 * number + 1)] for number in range(6)]


def test_as_far_as_allowed_and_to_the_end() -> None:
    source = Source()
    prefetcher = Prefetcher(source, BATCHES, ahead=2)
    until(lambda: source.fetched == {0, 1, 2})  # 3 fails; the reader that needs it reports the error
    time.sleep(0.05)
    assert source.fetched == {0, 1, 2}
    prefetcher.advance()
    until(lambda: source.fetched == {0, 1, 2, 4, 5})
    for _ in range(5):
        prefetcher.advance()
    until(lambda: source.fetched == set(range(12)) - {3})
    until(lambda: not any(thread.name.startswith("prefetch") for thread in threading.enumerate()))


def test_it_can_be_stopped() -> None:
    prefetcher = Prefetcher(Source(), BATCHES, ahead=1)
    prefetcher.stop()
    until(lambda: not any(thread.name.startswith("prefetch") for thread in threading.enumerate()))


def test_nothing_draws_the_order_any_more_once_it_is_stopped() -> None:
    drawing, drawn = threading.Event(), threading.Event()

    def batches() -> Iterator[list[Draw]]:
        drawing.set()
        time.sleep(0.3)  # torch shuffles an epoch
        drawn.set()
        yield from BATCHES

    prefetcher = Prefetcher(Source(), batches(), ahead=1)
    assert drawing.wait(10)
    prefetcher.stop()
    assert drawn.is_set()
    assert not any(thread.name == "prefetch order" for thread in threading.enumerate())


def test_it_can_be_stopped_when_everything_waits_for_a_slow_network() -> None:
    """The order is drawn to its end and the queue is full: nobody makes room in it any more."""
    asked, answered = threading.Semaphore(0), threading.Event()

    class Slow(Source):
        def prefetch(self, index: int) -> None:
            asked.release()
            answered.wait(10)

    batch = [Draw(0, number) for number in range(THREADS + 4 * THREADS)]
    prefetcher = Prefetcher(Slow(), [batch], ahead=1)
    for _ in range(THREADS):
        assert asked.acquire(timeout=10)
    until(prefetcher._images.full)
    stopping = threading.Thread(target=prefetcher.stop, daemon=True)
    stopping.start()
    until(prefetcher._stopped.is_set)
    answered.set()
    stopping.join(5)
    assert not stopping.is_alive()
