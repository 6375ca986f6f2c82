"""The order of the images: seeded, independent of the number of processes, resumable at any step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Sampler

from mae.data.sources.base import GROUPS_AT_ONCE
from mae.errors import ConfigError
from mae.system.seeding import stream


class Draw(NamedTuple):
    """The number of an image, and the seed of its augmentation in this epoch."""

    epoch: int
    image: int


@dataclasses.dataclass(eq=False)
class EpochBatches(Sampler[list[Draw]]):
    """Batches of every epoch's shuffled images, from any position of the run on.

    Images at the end of the order that do not fill a batch are not used in that epoch, as in the official recipe.
    Epochs follow each other in one iteration, so workers do not idle between them.

    Several ranks share each batch: it does not depend on their number, and rank r takes the r-th of equal slices.

    Attributes:
        images: Number of images.
        global_batch_size: Images per batch over all ranks, at most ``images``.
        epochs: Epochs of the whole run.
        seed: Seed of the run.
        start_epoch, start_batch: Position of the first batch.
        groups: Sizes of the source's groups, which are read as a whole; see ``epoch_order``.
        rank, world_size: Number of the slice of each batch to return, and number of slices.
        turn: Number of rollbacks; each value gives different orders.

    Raises:
        ConfigError: The ranks cannot share a batch equally.
    """

    images: int
    global_batch_size: int
    epochs: int
    seed: int
    start_epoch: int = 0
    start_batch: int = 0
    groups: Sequence[int] = ()
    rank: int = 0
    world_size: int = 1
    turn: int = 0

    def __post_init__(self) -> None:
        if self.global_batch_size % self.world_size:
            raise ConfigError(
                f"a batch of {self.global_batch_size} images cannot be shared equally by {self.world_size} processes"
            )

    def __iter__(self) -> Iterator[list[Draw]]:
        first, share = self.start_batch, self.global_batch_size // self.world_size
        for epoch in range(self.start_epoch, self.epochs):
            place = ("order", epoch, self.turn) if self.turn else ("order", epoch)
            order = epoch_order(self.images, self.groups, stream(self.seed, *place))
            for batch in range(first, self.images // self.global_batch_size):
                start = batch * self.global_batch_size + self.rank * share
                yield [Draw(epoch, index) for index in order[start : start + share].tolist()]
            first = 0


def epoch_order(images: int, groups: Sequence[int], generator: torch.Generator) -> Tensor:
    """A shuffled order of an epoch's images: their numbers, (images,) int64.

    If images are read in groups, the groups are shuffled, and then the images within every ``GROUPS_AT_ONCE``
    consecutive groups, so that each group is read once instead of once per image.
    """
    if not groups:
        return torch.randperm(images, generator=generator)
    starts = torch.tensor([0, *groups[:-1]]).cumsum(0)
    shuffled = torch.randperm(len(groups), generator=generator).tolist()
    parts = []
    for start in range(0, len(shuffled), GROUPS_AT_ONCE):
        window = torch.cat(
            [torch.arange(int(starts[group]), int(starts[group]) + groups[group])
             for group in shuffled[start : start + GROUPS_AT_ONCE]]
        )  # fmt: skip
        parts.append(window[torch.randperm(len(window), generator=generator)])
    return torch.cat(parts)
