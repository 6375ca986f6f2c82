"""Training batches: augmented pictures in a seeded order that any step can be resumed from."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2

from mae.data.formats import PictureError
from mae.data.normalise import picture_to_tensor
from mae.data.picture import load_picture
from mae.data.scan import Unreadable
from mae.seeding import seeded, stream, stream_seed

CACHE_BYTES = 256 * 2**20


class Draw(NamedTuple):
    """One picture in one epoch: it names the stream of its augmentation."""

    epoch: int
    picture: int


class Sample(NamedTuple):
    """A decoded, augmented picture (C, H, W) uint8, and the files that had to be passed over for it."""

    image: Tensor
    unreadable: tuple[Unreadable, ...]


class Batch(NamedTuple):
    """(B, C, H, W) uint8, and the files that had to be passed over."""

    images: Tensor
    unreadable: tuple[Unreadable, ...]


class PictureDataset(Dataset[Sample]):
    """Pictures with the official augmentation (Paper: Appendix A.1).

    RandomResizedCrop (bicubic) and a horizontal flip, nothing else. A file that cannot be decoded is
    replaced by the next one that can, so one bad file ends no run.

    Args:
        paths: The files.
        image_size: Size of a crop in pixels, (rows, columns).
        in_chans: Channels.
        seed: The run's seed.
        crop_scale: Smallest and largest share of a picture's area that a crop covers.
        hflip: Whether to flip half of the crops.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        image_size: tuple[int, int],
        in_chans: int,
        seed: int,
        crop_scale: tuple[float, float] = (0.2, 1.0),
        hflip: bool = True,
    ) -> None:
        self.paths = paths
        self.image_size = image_size
        self.in_chans = in_chans
        self.seed = seed
        steps = [
            v2.RandomResizedCrop(
                image_size, scale=crop_scale, interpolation=v2.InterpolationMode.BICUBIC, antialias=True
            )
        ]
        self.augment = v2.Compose([*steps, v2.RandomHorizontalFlip()] if hflip else steps)
        self._cache: dict[int, Image.Image] = {}
        self._cached_bytes = 0

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, draw: Draw) -> Sample:
        unreadable = []
        for offset in range(len(self.paths)):
            index = (draw.picture + offset) % len(self.paths)
            try:
                picture = self._decode(index)
                break
            except PictureError as error:
                unreadable.append(Unreadable(self.paths[index], error.reason))
        else:
            # The trainer, told that all of them are unreadable, ends the run with that error.
            return Sample(torch.zeros(self.in_chans, *self.image_size, dtype=torch.uint8), tuple(unreadable))
        with seeded(stream_seed(self.seed, "augment", draw.epoch, draw.picture)):
            return Sample(picture_to_tensor(self.augment(picture)), tuple(unreadable))

    def _decode(self, index: int) -> Image.Image:
        """Decode a picture; a small data set is decoded once and kept."""
        if index in self._cache:
            return self._cache[index]
        picture = load_picture(self.paths[index], self.in_chans)
        size = picture.width * picture.height * self.in_chans
        if self._cached_bytes + size <= CACHE_BYTES:
            self._cache[index] = picture
            self._cached_bytes += size
        return picture


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
    return Batch(torch.stack([sample.image for sample in samples]), unreadable)
