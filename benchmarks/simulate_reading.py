"""Simulates how much is fetched from a store in an epoch, from the order, shards, blocks and cache.

python benchmarks/simulate_reading.py

The order is the one that training uses (``mae.data.sampler.epoch_order``), over a data set of 65,536 images of 110 KB
in shards, divided over machines as ``EpochBatches`` does. Each machine has its own cache of blocks, which evicts the
least recently used ones. Results are multiples of the data set's size, so they also hold for larger data sets.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import torch

from mae.data.block_cache import BLOCK_BYTES
from mae.data.sampler import epoch_order
from mae.data.sources.remote_sources import GROUP_BYTES

IMAGES, IMAGE_BYTES, BATCH = 65_536, 110_000, 4096


def fetched(machines: int, cache_share: float, epochs: int = 3) -> list[float]:
    """Bytes that one machine fetches in each epoch, as a share of the whole data set."""
    starts = np.arange(IMAGES, dtype=np.int64) * IMAGE_BYTES
    group_of = starts // GROUP_BYTES
    groups = np.bincount(group_of).tolist()
    first, last = starts // BLOCK_BYTES, (starts + IMAGE_BYTES - 1) // BLOCK_BYTES
    room = int(cache_share * IMAGES * IMAGE_BYTES / BLOCK_BYTES)
    kept: OrderedDict[int, None] = OrderedDict()
    shares = []
    for epoch in range(epochs):
        order = epoch_order(IMAGES, groups, torch.Generator().manual_seed(epoch)).numpy()
        share = BATCH // machines
        misses = 0
        for start in range(0, IMAGES, BATCH):
            for image in order[start : start + share]:
                for block in {int(first[image]), int(last[image])}:
                    if block in kept:
                        kept.move_to_end(block)
                        continue
                    misses += 1
                    kept[block] = None
                    if len(kept) > room:
                        kept.popitem(last=False)
        shares.append(misses * BLOCK_BYTES / (IMAGES * IMAGE_BYTES))
    return shares


def main() -> None:
    """Print a table in Markdown."""
    print(
        "| machines | cache, fraction of the data set | fetched by each machine, first epoch | by each, third epoch "
        "| by all, third epoch |"
    )
    print("|---|---|---|---|---|")
    for machines in (1, 2, 8, 32, 128):
        for cache_share in (0.02, 0.5, 1.1):
            shares = fetched(machines, cache_share)
            print(
                f"| {machines} | {cache_share:.0%} | {shares[0]:.2f} | {shares[-1]:.2f} | {machines * shares[-1]:.1f} |"
            )


if __name__ == "__main__":
    main()
