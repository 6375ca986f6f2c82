"""A shared cache of groups of images that can only be decoded as a whole, such as Parquet row groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from mae.data.shared_memory import SharedMemory

_WORD = 8  # bytes of an int64
BYTES_PER_ROW = 2 * _WORD  # index entry of a row: offset and length


class GroupCache:
    """A cache of a few groups of rows, shared by all processes that share the memory; evicts the oldest group.

    Neighbouring images of an epoch's order are loaded by different processes. The first process that needs a group
    decodes it, and the others that need it wait until it is done.

    Args:
        groups: Total number of groups.
        capacity: Memory for cached groups in bytes.
    """

    def __init__(self, groups: int, capacity: int) -> None:
        self.groups = groups
        self.memory = SharedMemory((1 + 2 * groups) * _WORD + capacity)

    def row(self, group: int, row: int, decode: Callable[[], Sequence[bytes | None]]) -> bytes | None:
        """One row of a group; ``decode`` returns all rows of the group, and is called if it is not cached."""
        found, data = self._find(group, row)
        if found:
            return data
        with self.memory.locked(1 + group):
            found, data = self._find(group, row)
            if found:
                return data
            rows = decode()
            self._keep(group, rows)
        return rows[row]

    def _find(self, group: int, row: int) -> tuple[bool, bytes | None]:
        with self.memory.locked(0, shared=True):
            place, size = self._places[group].tolist()
            if not size:
                return False, None
            start, length = np.frombuffer(self.memory.bytes, np.int64, 2, place + BYTES_PER_ROW * row).tolist()
            return True, None if length < 0 else self.memory.bytes[place + start : place + start + length]

    def _keep(self, group: int, rows: Sequence[bytes | None]) -> None:
        """Write a group (an index of the rows, then the rows) over the oldest ones."""
        lengths = np.array([-1 if data is None else len(data) for data in rows], np.int64)
        taken = np.maximum(lengths, 0)
        starts = BYTES_PER_ROW * len(rows) + np.cumsum(taken) - taken
        size = -(-(BYTES_PER_ROW * len(rows) + int(taken.sum())) // _WORD) * _WORD
        first = (1 + 2 * self.groups) * _WORD
        if size > self.memory.size - first:
            return
        with self.memory.locked(0):
            place = int(self._next[0]) or first
            place = place if place + size <= self.memory.size else first
            there = self._places
            there[(there[:, 0] < place + size) & (there[:, 0] + there[:, 1] > place), 1] = 0
            table = np.frombuffer(self.memory.bytes, np.int64, 2 * len(rows), place).reshape(-1, 2)
            table[:, 0], table[:, 1] = starts, lengths
            for start, data in zip(starts.tolist(), rows, strict=True):
                if data:
                    self.memory.bytes[place + start : place + start + len(data)] = data
            there[group] = place, size
            self._next[0] = place + size

    @property
    def _next(self) -> NDArray[np.int64]:
        """Offset of the next group to be written."""
        return np.frombuffer(self.memory.bytes, np.int64, 1)

    @property
    def _places(self) -> NDArray[np.int64]:
        """(groups, 2): offset and size of each group; size 0 if it is not cached."""
        return np.frombuffer(self.memory.bytes, np.int64, 2 * self.groups, _WORD).reshape(-1, 2)
