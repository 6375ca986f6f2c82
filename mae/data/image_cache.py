"""A cache of decoded images in memory, for small data sets."""

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
    """Decoded images, kept once for all processes that share the memory: any of them finds what another has decoded.

    The first that come stay, as many as fit. Every epoch asks for every image once, so to drop one for another would
    gain nothing.

    Args:
        images: How many there are in all.
        limit: Bytes for everything, the index included.
    """

    def __init__(self, images: int, limit: int) -> None:
        self.images = images
        self.memory = SharedMemory(limit)

    @property
    def room(self) -> int:
        """Free bytes for the pixels of another image; at least 0."""
        return max(0, self.memory.size - self._end() - _HEADER)

    def get(self, index: int) -> FullImage | None:
        """An image that was kept, or None. Its pixels lie in the shared memory."""
        if self._first_place > self.memory.size:
            return None
        place = int(self._index[1 + index])
        if not place:
            return None
        rows, columns, channels, orientation = np.frombuffer(self.memory.bytes, np.int64, 4, place).tolist()
        pixels = np.frombuffer(self.memory.bytes, np.uint8, rows * columns * channels, place + _HEADER)
        return FullImage(pixels.reshape(rows, columns, channels), TURNS[orientation])

    def keep(self, index: int, image: FullImage) -> None:
        """Keep an image, if there is room."""
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
        # Only now is it there for others. The lock is also what keeps a processor from writing this before the pixels.
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
            return self._first_place  # there is no room for the index alone
        return int(self._index[0]) or self._first_place
