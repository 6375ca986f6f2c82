"""Training batches: augmented pictures in a seeded order that any step can be resumed from."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from mae.data.augment import Augmentation, WholePicture
from mae.data.formats import PictureError
from mae.data.picture import open_picture
from mae.data.scan import Unreadable
from mae.seeding import stream, stream_seed


class Draw(NamedTuple):
    """One picture in one epoch: it names the stream of its augmentation."""

    epoch: int
    picture: int


class Sample(NamedTuple):
    """A decoded, augmented picture (H, W, C) uint8, and the files that had to be passed over for it."""

    image: Tensor
    unreadable: tuple[Unreadable, ...]


class Batch(NamedTuple):
    """(B, C, H, W) uint8 with channels last in memory, and the files that had to be passed over."""

    images: Tensor
    unreadable: tuple[Unreadable, ...]


class PictureDataset(Dataset[Sample]):
    """Pictures with the official augmentation (Paper: Appendix A.1).

    A file that cannot be decoded is replaced by the next one that can, so one bad file ends no run.

    Args:
        paths: The files.
        augmentation: What is done to each.
        seed: The run's seed.
        cache_bytes: How much memory decoded pictures may take in each loader process; 0 keeps none.
    """

    def __init__(self, paths: Sequence[Path], augmentation: Augmentation, seed: int, cache_bytes: int = 0) -> None:
        self.paths = paths
        self.augmentation = augmentation
        self.seed = seed
        self.cache_bytes = cache_bytes
        self._cache: dict[int, WholePicture] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, draw: Draw) -> Sample:
        unreadable: list[Unreadable] = []
        seed = stream_seed(self.seed, "augment", draw.epoch, draw.picture)
        for offset in range(len(self.paths)):
            index = (draw.picture + offset) % len(self.paths)
            try:
                return Sample(self._augmented(index, seed), tuple(unreadable))
            except PictureError as error:
                unreadable.append(Unreadable(self.paths[index], error.reason))
        # The trainer, told that all of them are unreadable, ends the run with that error.
        shape = (*self.augmentation.image_size, self.augmentation.in_chans)
        return Sample(torch.zeros(shape, dtype=torch.uint8), tuple(unreadable))

    def _augmented(self, index: int, seed: int) -> Tensor:
        if index in self._cache:
            return self.augmentation.crop(self._cache[index], seed)
        path = self.paths[index]
        with open_picture(path) as file:
            if self.cache_bytes > 0:
                picture = self.augmentation.keepable(file, path)
                if picture is not None and picture.pixels.nbytes <= self.cache_bytes:
                    self._cache[index] = picture
                    self.cache_bytes -= picture.pixels.nbytes
                if picture is not None:
                    return self.augmentation.crop(picture, seed)
                file.seek(0)
            return self.augmentation(file, path, seed)


class EpochBatches(Sampler[list[Draw]]):
    """Every epoch's pictures in a shuffled order, cut into full batches, from any place of the run on.

    The last pictures of an order that fill no batch are left out of that epoch, as in the official
    recipe. The epochs follow each other without a gap, so workers never wait at their boundary.

    Args:
        pictures: Number of pictures.
        batch_size: Pictures in a batch, at most ``pictures``.
        epochs: Epochs of the whole run.
        seed: The run's seed.
        start_epoch, start_batch: Where to go on.
    """

    def __init__(
        self, pictures: int, batch_size: int, epochs: int, seed: int, start_epoch: int = 0, start_batch: int = 0
    ) -> None:
        self.pictures = pictures
        self.batch_size = batch_size
        self.epochs = epochs
        self.seed = seed
        self.start_epoch = start_epoch
        self.start_batch = start_batch

    def __iter__(self) -> Iterator[list[Draw]]:
        first = self.start_batch
        for epoch in range(self.start_epoch, self.epochs):
            order = torch.randperm(self.pictures, generator=stream(self.seed, "order", epoch)).tolist()
            for batch in range(first, self.pictures // self.batch_size):
                indices = order[batch * self.batch_size : (batch + 1) * self.batch_size]
                yield [Draw(epoch, index) for index in indices]
            first = 0


def make_loader(
    dataset: PictureDataset, batches: EpochBatches, *, workers: int, pin_memory: bool = False
) -> DataLoader[Batch]:
    """A loader over all the run's batches; the same batches whatever the number of workers."""
    return DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_ignore_interrupt,
        pin_memory=pin_memory,
        prefetch_factor=4 if workers else None,
        # Its base seed would otherwise be drawn from torch's global stream.
        generator=stream(batches.seed, "loader"),
    )


def _ignore_interrupt(worker: int) -> None:
    """Ctrl-C reaches the whole process group; the training process alone decides when workers end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _collate(samples: list[Sample]) -> Batch:
    unreadable = tuple(bad for sample in samples for bad in sample.unreadable)
    return Batch(torch.stack([sample.image for sample in samples]).permute(0, 3, 1, 2), unreadable)
