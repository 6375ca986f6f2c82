"""Many paths in a few large objects, so that forked loader processes share their memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, overload

import numpy as np

from mae.data.decoding.image import open_image
from mae.data.sources.base import ImageSource


class ImagePaths(ImageSource, Sequence[Path]):
    """Files of some folders, as a sequence of paths.

    A million ``Path`` objects would take 300 MB and a second in each loader process. Here a path takes its name's
    length and 8 bytes.

    Args:
        folders: Each folder with the names of its files, each ended by a zero byte.
    """

    def __init__(self, folders: Iterable[tuple[bytes, bytes]]) -> None:
        listed = [(folder, names) for folder, names in folders if names]
        self._folders = tuple(folder for folder, _ in listed)
        self._names = b"".join(names for _, names in listed)
        self._ends = np.flatnonzero(np.frombuffer(self._names, np.uint8) == 0)
        # Number of files up to the end of each folder.
        self._counts = np.cumsum([names.count(b"\0") for _, names in listed], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> list[Path]: ...
    def __getitem__(self, index: int | slice) -> Path | list[Path]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        start = int(self._ends[index - 1]) + 1 if index else 0
        folder = self._folders[int(np.searchsorted(self._counts, index, side="right"))]
        return Path(os.fsdecode(os.path.join(folder, self._names[start : int(self._ends[index])])))

    def name(self, index: int) -> Path:
        return self[index]

    def open(self, index: int) -> IO[bytes]:
        return open_image(self[index])

    def digest(self) -> str:
        """Hash of the files' names and the sizes of the folders, in order."""
        return hashlib.blake2b(self._names + self._counts.tobytes(), digest_size=8).hexdigest()
