"""A shared in-memory cache of decoded images, for small data sets."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mae.data.augment import FullImage
from mae.data.decoding.orientation import TURNS
from mae.data.shared_memory import SharedMemory

_WORD = 8  # bytes of an int64
_HEADER = 4 * _WORD  # rows, columns, channels, orientation
_ORIENTATIONS = {turn: number for number, turn in TURNS.items()}


class ImageCache:
    """A cache of decoded images, shared by all processes that share the memory.

    The first images that fit stay; none is evicted, because every epoch uses every image once, so eviction would not
    raise the hit rate.

    Args:
        images: Total number of images.
        limit: Memory in bytes, the index included.
    """

    def __init__(self, images: int, limit: int) -> None:
        self.images = images
        self.memory = SharedMemory(limit)

    @property
    def room(self) -> int:
        """Free bytes for the pixels of another image; at least 0."""
        return max(0, self.memory.size - self._end() - _HEADER)

    def get(self, index: int) -> FullImage | None:
        """A cached image, whose pixels lie in the shared memory, or None if it is not cached."""
        if self._first_place > self.memory.size:
            return None
        place = int(self._index[1 + index])
        if not place:
            return None
        rows, columns, channels, orientation = np.frombuffer(self.memory.bytes, np.int64, 4, place).tolist()
        pixels = np.frombuffer(self.memory.bytes, np.uint8, rows * columns * channels, place + _HEADER)
        return FullImage(pixels.reshape(rows, columns, channels), TURNS[orientation])

    def keep(self, index: int, image: FullImage) -> None:
        """Store an image, if there is room."""
        needed = _HEADER + -(-image.pixels.nbytes // _WORD) * _WORD
        if image.pixels.nbytes > self.room:
            return
        with self.memory.locked(0):
            place = self._end()
            if self._index[1 + index] or place + needed > self.memory.size:
                return
            self._index[0] = place + needed
        header = np.frombuffer(self.memory.bytes, np.int64, 4, place)
        header[:] = (*image.pixels.shape, _ORIENTATIONS[image.turn])
        pixels = np.frombuffer(self.memory.bytes, np.uint8, image.pixels.nbytes, place + _HEADER)
        pixels[:] = image.pixels.reshape(-1)
        # The index entry makes the image visible to other processes. Taking the lock also ensures that the pixels are
        # written before the entry.
        with self.memory.locked(0):
            self._index[1 + index] = place

    @property
    def _index(self) -> NDArray[np.int64]:
        """The offset for the next image, then the offset of each image; 0 for none."""
        return np.frombuffer(self.memory.bytes, np.int64, 1 + self.images)

    @property
    def _first_place(self) -> int:
        return (1 + self.images) * _WORD

    def _end(self) -> int:
        if self._first_place > self.memory.size:
            return self._first_place  # the limit is too small even for the index
        return int(self._index[0]) or self._first_place
