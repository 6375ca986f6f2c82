"""A cache of groups of images that can only be read as a whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from mae.data.shared_memory import SharedMemory

_WORD = 8  # bytes of an int64
BYTES_PER_ROW = 2 * _WORD  # beside its own: where it begins and how long it is


class GroupCache:
    """The rows of a few groups, kept once for all processes that share the memory.

    Neighbours in the order are read by different processes. Whichever first needs a group decodes it, and those that
    need it meanwhile wait. The group that came first goes first.

    Args:
        groups: How many there are in all.
        capacity: Bytes for the groups that are kept at a time.
    """

    def __init__(self, groups: int, capacity: int) -> None:
        self.groups = groups
        self.memory = SharedMemory((1 + 2 * groups) * _WORD + capacity)

    def row(self, group: int, row: int, decode: Callable[[], Sequence[bytes | None]]) -> bytes | None:
        """One row of a group; ``decode`` gives all of them, and is called where the group is not kept."""
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
        """Write a group over the oldest ones: an index of the rows, then the rows."""
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
        """Where the next group goes."""
        return np.frombuffer(self.memory.bytes, np.int64, 1)

    @property
    def _places(self) -> NDArray[np.int64]:
        """(groups, 2): where each group begins and its size, 0 for one that is not there."""
        return np.frombuffer(self.memory.bytes, np.int64, 2 * self.groups, _WORD).reshape(-1, 2)
