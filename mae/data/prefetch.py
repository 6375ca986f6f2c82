"""Download the data of the next batches ahead of time, in the known order."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterable

from mae.data.sampler import Draw
from mae.data.sources.base import ImageSource
from mae.errors import MaeError

THREADS = 8


class Prefetcher:
    """Threads that go through the batches ahead of the loader, and never further than so many.

    What cannot be fetched is no error here: the loader process that needs it says so.

    Args:
        source: Where the images come from.
        batches: In the order in which they will be asked for.
        ahead: Batches.
    """

    def __init__(self, source: ImageSource, batches: Iterable[list[Draw]], ahead: int) -> None:
        self.source = source
        self._room = threading.Semaphore(ahead)
        self._images: queue.Queue[int | None] = queue.Queue(THREADS * 4)
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._walk, args=(batches,), daemon=True, name="prefetch order")]
        self._threads += [threading.Thread(target=self._fetch, daemon=True, name="prefetch") for _ in range(THREADS)]
        for thread in self._threads:
            thread.start()

    def advance(self) -> None:
        """Allow another batch to be fetched, after one was taken."""
        self._room.release()

    def stop(self) -> None:
        """Fetch no more."""
        self._stopped.set()
        self._room.release()

    def _walk(self, batches: Iterable[list[Draw]]) -> None:
        for batch in batches:
            self._room.acquire()
            for draw in batch:
                while not self._stopped.is_set():
                    with contextlib.suppress(queue.Full):
                        self._images.put(draw.image, timeout=0.5)
                        break
            if self._stopped.is_set():
                return
        for _ in range(THREADS):
            self._images.put(None)

    def _fetch(self) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Empty, MaeError, OSError):
                index = self._images.get(timeout=0.5)
                if index is None:
                    return
                self.source.prefetch(index)
