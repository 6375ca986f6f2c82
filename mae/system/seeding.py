"""Random streams that depend on nothing but the run's seed and what they are for.

Every draw of a run (the order of an epoch, one image's crop, one step's mask) has a stream of its own,
named by its place in the run. A resumed run needs no saved generator state to repeat them, and the number
of loader workers changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(seed: int, *place: int | str) -> int:
    """A 63-bit seed for one place in a run, for instance ``derive_seed(0, "mask", epoch, step)``."""
    digest = hashlib.blake2b(repr((seed, *place)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def stream(seed: int, *place: int | str) -> torch.Generator:
    """A CPU generator for one place in a run."""
    return torch.Generator().manual_seed(derive_seed(seed, *place))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Lend torch's global CPU stream a seed, for code that can draw from nowhere else; put it back after."""
    state = torch.random.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.random.set_rng_state(state)
