"""Where images come from: one interface for folders, archives and tables."""

from __future__ import annotations

import abc
import bisect
import hashlib
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mae.data.decoding.image import decode_image
from mae.data.shared_memory import SharedMemory

# Whose images are mixed with each other, where they are read in groups.
GROUPS_AT_ONCE = 16


class ImageSource(abc.ABC):
    """Numbered images, any of which can be opened at any time and from any process.

    Order, shuffling, resuming and the split over ranks need nothing but the numbers, so they are the same for
    all sources.
    """

    @abc.abstractmethod
    def __len__(self) -> int:
        """How many there are."""

    @abc.abstractmethod
    def name(self, index: int) -> Path:
        """An image's name: its path, or its archive's path and its name in the archive."""

    @abc.abstractmethod
    def open(self, index: int) -> IO[bytes]:
        """Open one for reading; it can seek.

        Raises:
            DataError: It cannot be read any more.
        """

    @abc.abstractmethod
    def digest(self) -> str:
        """Changes when an image is added, removed or renamed, and not when the whole is moved elsewhere."""

    @property
    def groups(self) -> Sequence[int]:
        """Sizes of the parts that are cheap to read only as a whole, in order; none where any image is."""
        return ()

    @property
    def memories(self) -> Sequence[SharedMemory]:
        """What loader processes share for it; another process of the run may be shown where its own lies."""
        return ()

    def prefetch(self, index: int) -> None:  # noqa: B027
        """Prefetch an image that will be opened soon; does nothing for local files."""

    @property
    def is_remote(self) -> bool:
        """Whether ``prefetch`` does anything."""
        return False

    def load(self, index: int, in_chans: int, on_note: Callable[[str], None] | None = None) -> Image.Image:
        """Decode one; see ``decode_image``."""
        with self.open(index) as file:
            return decode_image(file, self.name(index), in_chans, on_note)


class Subset(ImageSource):
    """Some images of a source, in the order given.

    Args:
        source: Of all.
        indices: Which.
    """

    def __init__(self, source: ImageSource, indices: NDArray[np.int64]) -> None:
        self.source = source
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> Path:
        """As the source has it."""
        return self.source.name(int(self.indices[index]))

    def open(self, index: int) -> IO[bytes]:
        """As the source does."""
        return self.source.open(int(self.indices[index]))

    def digest(self) -> str:
        """Of the source and of which images."""
        return hashlib.blake2b(self.source.digest().encode() + self.indices.tobytes(), digest_size=8).hexdigest()


class JoinedSource(ImageSource):
    """Several sources, one after the other."""

    def __init__(self, parts: Sequence[ImageSource]) -> None:
        self.parts = parts
        self._starts = list(itertools.accumulate((len(part) for part in parts), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def _find(self, index: int) -> tuple[ImageSource, int]:
        part = bisect.bisect_right(self._starts, index) - 1
        return self.parts[part], index - self._starts[part]

    def name(self, index: int) -> Path:
        """As the part has it."""
        part, place = self._find(index)
        return part.name(place)

    def prefetch(self, index: int) -> None:
        """As the part does."""
        part, place = self._find(index)
        part.prefetch(place)

    @property
    def is_remote(self) -> bool:
        """Whether a part is."""
        return any(part.is_remote for part in self.parts)

    def open(self, index: int) -> IO[bytes]:
        """As the part does."""
        part, place = self._find(index)
        return part.open(place)

    def digest(self) -> str:
        """Of all parts in their order."""
        text = " ".join(part.digest() for part in self.parts)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    @property
    def groups(self) -> Sequence[int]:
        """A part without groups is taken in pieces, so that it mixes with the others."""
        if not any(part.groups for part in self.parts):
            return ()
        return [size for part in self.parts for size in (part.groups or _pieces(len(part)))]

    @property
    def memories(self) -> Sequence[SharedMemory]:
        """Of all parts."""
        return [memory for part in self.parts for memory in part.memories]


def _pieces(total: int, piece: int = 100) -> list[int]:
    return [min(piece, total - start) for start in range(0, total, piece)]
