"""The interface of image sources: folders, archives and tables."""

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

# Number of consecutive groups whose images are shuffled together, for sources that are read in groups.
GROUPS_AT_ONCE = 16


class ImageSource(abc.ABC):
    """Numbered images, which can be opened in any order and from any process.

    Shuffling, resuming and the split over ranks use only the numbers, so they are the same for all sources.
    """

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abc.abstractmethod
    def name(self, index: int) -> Path:
        """Name of an image: its path, or the path of its archive joined with its name in the archive."""

    @abc.abstractmethod
    def open(self, index: int) -> IO[bytes]:
        """Open an image as a seekable binary file.

        Raises:
            DataError: The image cannot be read any more.
        """

    @abc.abstractmethod
    def digest(self) -> str:
        """Hash that changes if an image is added, removed or renamed, but not if the whole source is moved."""

    @property
    def groups(self) -> Sequence[int]:
        """Sizes of the groups of images that are best read as a whole, in order; empty if images are read singly."""
        return ()

    @property
    def memories(self) -> Sequence[SharedMemory]:
        """The memory that loader processes share for this source; other processes of the run can adopt it."""
        return ()

    def prefetch(self, index: int) -> None:  # noqa: B027
        """Prefetch an image that will be opened soon; does nothing for local files."""

    @property
    def is_remote(self) -> bool:
        """Whether ``prefetch`` does anything."""
        return False

    @property
    def versions(self) -> Sequence[str]:
        """What changes with the content of each remote object; empty for local files."""
        return ()

    @property
    def warnings(self) -> Sequence[str]:
        """Messages for the user about what cannot be checked while the source is read."""
        return ()

    def load(self, index: int, in_chans: int, on_note: Callable[[str], None] | None = None) -> Image.Image:
        """Decode an image; see ``decode_image``."""
        with self.open(index) as file:
            return decode_image(file, self.name(index), in_chans, on_note)


class WrappedSource(ImageSource):
    """A source whose images are those of other sources."""

    @abc.abstractmethod
    def locate(self, index: int) -> tuple[ImageSource, int]:
        """The source that holds an image, and the image's number in it."""

    def name(self, index: int) -> Path:
        source, number = self.locate(index)
        return source.name(number)

    def open(self, index: int) -> IO[bytes]:
        source, number = self.locate(index)
        return source.open(number)

    def prefetch(self, index: int) -> None:
        source, number = self.locate(index)
        source.prefetch(number)


class Subset(WrappedSource):
    """Some images of a source, in the order given.

    Args:
        source: The source.
        indices: Numbers of the chosen images in the source, (N,).
    """

    def __init__(self, source: ImageSource, indices: NDArray[np.int64]) -> None:
        self.source = source
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def locate(self, index: int) -> tuple[ImageSource, int]:
        return self.source, int(self.indices[index])

    @property
    def groups(self) -> Sequence[int]:
        """The source's groups, as far as their images are chosen; neighbours of one group stay together."""
        ends = np.cumsum(self.source.groups, dtype=np.int64)
        if not len(ends) or not len(self.indices):
            return ()
        group = np.searchsorted(ends, self.indices, side="right")
        begins = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
        sizes: list[int] = np.diff(np.r_[begins, len(group)]).tolist()
        return sizes

    @property
    def memories(self) -> Sequence[SharedMemory]:
        return self.source.memories

    @property
    def is_remote(self) -> bool:
        return self.source.is_remote

    @property
    def versions(self) -> Sequence[str]:
        return self.source.versions

    @property
    def warnings(self) -> Sequence[str]:
        return self.source.warnings

    def digest(self) -> str:
        """Hash of the source's digest and the chosen numbers."""
        return hashlib.blake2b(self.source.digest().encode() + self.indices.tobytes(), digest_size=8).hexdigest()


class JoinedSource(WrappedSource):
    """Several sources, concatenated."""

    def __init__(self, parts: Sequence[ImageSource]) -> None:
        self.parts = parts
        self._starts = list(itertools.accumulate((len(part) for part in parts), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def locate(self, index: int) -> tuple[ImageSource, int]:
        part = bisect.bisect_right(self._starts, index) - 1
        return self.parts[part], index - self._starts[part]

    @property
    def is_remote(self) -> bool:
        return any(part.is_remote for part in self.parts)

    @property
    def versions(self) -> Sequence[str]:
        return [version for part in self.parts for version in part.versions]

    def digest(self) -> str:
        """Hash of the digests of all parts, in order."""
        text = " ".join(part.digest() for part in self.parts)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    @property
    def warnings(self) -> Sequence[str]:
        return [warning for part in self.parts for warning in part.warnings]

    @property
    def groups(self) -> Sequence[int]:
        """The groups of all parts; a part without groups is divided into pieces, to be shuffled with the others."""
        if not any(part.groups for part in self.parts):
            return ()
        return [size for part in self.parts for size in (part.groups or _pieces(len(part)))]

    @property
    def memories(self) -> Sequence[SharedMemory]:
        return [memory for part in self.parts for memory in part.memories]


def _pieces(total: int, piece: int = 100) -> list[int]:
    return [min(piece, total - start) for start in range(0, total, piece)]
