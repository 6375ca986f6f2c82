"""A small coverage-guided fuzzer: inputs that reach new lines of our code are kept and mutated further."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

_LONGEST = 60_000
_EDGES = (0, 1, 2, 7, 8, 15, 16, 31, 32, 63, 64, 100, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1)
_EDGES += (2**40, 2**62, 2**63, 2**64 - 1)


class Fuzzer:
    """Feeds mutated inputs to a target for a given time.

    Args:
        target: Function of bytes; any exception is a finding.
        seeds: Inputs to begin with.
        watched: Part of the path of files whose lines count.
        seed: Of all choices.
    """

    def __init__(self, target: Callable[[bytes], object], seeds: Sequence[bytes], watched: str, seed: int) -> None:
        self.target = target
        self.watched = watched
        self.stream = random.Random(seed)
        self.seen: set[tuple[str, int, int]] = set()
        self.kept: list[bytes] = []
        self.tried = 0
        for data in seeds:
            if self._reaches_new(data) or not self.kept:
                self.kept.append(data)

    def run(self, seconds: float) -> None:
        """Run for this many seconds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            # Later inputs reach deeper code, so they are chosen more often.
            late = self.stream.random() < 0.5
            recent = self.kept[-20:] if late else self.kept
            data = self._mutated(self.stream.choice(recent))
            if self._reaches_new(data):
                self.kept.append(data)

    def _reaches_new(self, data: bytes) -> bool:
        before = len(self.seen)
        self.tried += 1
        sys.settrace(self._trace)
        try:
            self.target(data)
        finally:
            sys.settrace(None)
        return len(self.seen) > before

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        name = frame.f_code.co_filename
        if self.watched not in name:
            return None
        previous = frame.f_lineno

        def on_line(inner: FrameType, kind: str, _: Any) -> Any:
            nonlocal previous
            self.seen.add((name, previous, inner.f_lineno))
            previous = inner.f_lineno
            return on_line

        return on_line

    def _mutated(self, data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(self.stream.choice((1, 1, 1, 2, 3, 6))):
            self.stream.choice(_MUTATIONS)(self.stream, changed, self.kept)
        return bytes(changed[:_LONGEST])


Change = Callable[[random.Random, bytearray, Sequence[bytes]], None]


def _flip(stream: random.Random, data: bytearray, kept: Sequence[bytes]) -> None:
    if data:
        data[_place(stream, data)] ^= 1 << stream.randrange(8)


def _byte(stream: random.Random, data: bytearray, kept: Sequence[bytes]) -> None:
    if data:
        data[_place(stream, data)] = stream.randrange(256)


def _number(stream: random.Random, data: bytearray, kept: Sequence[bytes]) -> None:
    width, order = stream.choice((1, 2, 4, 8)), stream.choice(("little", "big"))
    at, value = _place(stream, data), stream.choice(_EDGES) % 256**width
    data[at : at + width] = value.to_bytes(width, order)  # type: ignore[arg-type]


def _digits(stream: random.Random, data: bytearray, kept: Sequence[bytes]) -> None:
    """Replace a number in text, as in the header of a safetensors file or a netpbm image."""
    places = [place for place, value in enumerate(data[:4000]) if 48 <= value < 58]
    if places:
        at = stream.choice(places)
        data[at : at + 1] = str(stream.choice((*_EDGES, -1))).encode()


def _cut(stream: random.Random, data: bytearray, kept: Sequence[bytes]) -> None:
    at = _place(stream, data)
    del data[at : at + stream.choice((1, 2, 4, 16, 256, 5000))]


def _repeat(stream: random.Random, data: bytearray, kept: Sequence[bytes]) -> None:
    at = _place(stream, data)
    data[at:at] = data[at : at + stream.choice((1, 2, 4, 16, 64))] * stream.choice((1, 2, 9))


def _splice(stream: random.Random, data: bytearray, kept: Sequence[bytes]) -> None:
    other, at = stream.choice(kept), _place(stream, data)
    start = stream.randrange(len(other) + 1)
    data[at : at + stream.choice((0, 8, 64))] = other[start : start + stream.choice((4, 16, 64, 1024))]


def _truncate(stream: random.Random, data: bytearray, kept: Sequence[bytes]) -> None:
    del data[_place(stream, data) :]


def _place(stream: random.Random, data: bytearray) -> int:
    """A position, mostly near the start or the end, where the structure is."""
    if not data:
        return 0
    near = min(len(data), stream.choice((16, 64, 512, len(data))))
    return stream.randrange(near) if stream.random() < 0.7 else len(data) - 1 - stream.randrange(near)


_MUTATIONS: tuple[Change, ...] = (_flip, _byte, _number, _number, _digits, _cut, _repeat, _splice, _truncate)
