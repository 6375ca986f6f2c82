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
    """Threads that fetch the data of the next batches, at most ``ahead`` batches before the loader.

    A failure to fetch is ignored here: the loader process that needs the data reports it.

    Args:
        source: Source of the images.
        batches: Batches in the order in which they will be loaded.
        ahead: Largest number of batches to fetch ahead.
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
        """Allow one more batch to be fetched, after one was used."""
        self._room.release()

    def stop(self) -> None:
        """Stop fetching.

        The thread that draws the order ends before this returns, because a thread that is inside torch when the
        interpreter ends would abort the process. The others may still wait for the network.
        """
        self._stopped.set()
        self._room.release()
        self._threads[0].join()

    def _walk(self, batches: Iterable[list[Draw]]) -> None:
        for batch in batches:
            self._room.acquire()
            for draw in batch:
                self._put(draw.image)
            if self._stopped.is_set():
                return
        for _ in range(THREADS):
            self._put(None)

    def _put(self, index: int | None) -> None:
        """Wait for room in the queue, unless fetching is stopped: then nothing is taken from it any more."""
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._images.put(index, timeout=0.5)
                return

    def _fetch(self) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Empty, MaeError, OSError):
                index = self._images.get(timeout=0.5)
                if index is None:
                    return
                self.source.prefetch(index)
