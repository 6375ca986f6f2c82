"""Measures throughput and the time spent waiting for images."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Throughput:
    """Images per second, and the fraction of the time spent waiting for images."""

    def __init__(self) -> None:
        self.images = 0
        self._wait = 0.0
        self._window: list[tuple[float, int, float]] = [(time.monotonic(), 0, 0.0)]
        self._epoch = self._window[0]

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A context manager whose time counts as waiting."""
        began = time.monotonic()
        yield
        self._wait += time.monotonic() - began

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A context manager whose time is not counted."""
        began = time.monotonic()
        yield
        gone = time.monotonic() - began
        self._window = [(at + gone, images, wait) for at, images, wait in self._window]
        self._epoch = (self._epoch[0] + gone, *self._epoch[1:])

    def rate(self) -> tuple[float, float]:
        """Images per second and fraction of time spent waiting, over the last ten seconds or the last steps.

        Steps that are read together have the same rate.
        """
        now = (time.monotonic(), self.images, self._wait)
        if self.images > self._window[-1][1]:
            self._window.append(now)
        while len(self._window) > 2 and now[0] - self._window[0][0] > 10:
            self._window.pop(0)
        then = self._window[0]
        seconds = max(now[0] - then[0], 1e-9)
        return (now[1] - then[1]) / seconds, (now[2] - then[2]) / seconds

    def epoch(self) -> tuple[float, int, float]:
        """Seconds, images and fraction of time spent waiting since the last call of ``epoch``."""
        now, then = (time.monotonic(), self.images, self._wait), self._epoch
        self._epoch = now
        seconds = max(now[0] - then[0], 1e-9)
        return seconds, now[1] - then[1], (now[2] - then[2]) / seconds
