"""Random generators that depend only on the run's seed, the purpose and the position.

Every random quantity of a run (the order of an epoch, the crop of an image, the mask of a step) has its own generator.
So a resumed run needs no saved generator state, and the number of loader workers does not change any value.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(seed: int, *place: int | str) -> int:
    """A 63-bit seed for a purpose and position, for instance ``derive_seed(0, "mask", epoch, step)``."""
    digest = hashlib.blake2b(repr((seed, *place)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def stream(seed: int, *place: int | str) -> torch.Generator:
    """A CPU generator for a purpose and position, seeded by ``derive_seed``."""
    return torch.Generator().manual_seed(derive_seed(seed, *place))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A context manager that seeds torch's global CPU generator, and restores its state afterwards."""
    state = torch.random.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.random.set_rng_state(state)
