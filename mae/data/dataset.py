"""A dataset of augmented images, by index."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mae.data.augment import Augmentation
from mae.data.decoding.formats import ImageError
from mae.data.image_cache import ImageCache
from mae.data.sampler import Draw
from mae.data.sources.base import ImageSource
from mae.data.sources.scan import Unreadable
from mae.system.seeding import derive_seed, stream

# Files that are tried for one image: itself and the next ones, then randomly drawn ones.
NEXT_TRIED, MOST_TRIES = 8, 16


class Sample(NamedTuple):
    """A decoded, augmented image (H, W, C), and the unreadable files that were tried before it.

    The image is None if every file that was tried is unreadable.

    Attributes:
        number: Number of the image in the source: the drawn one, or its replacement.
    """

    image: Tensor | None
    unreadable: tuple[Unreadable, ...]
    cached: bool = False
    number: int = -1


class ImageDataset(Dataset[Sample]):
    """Images with the official augmentation (Paper: Appendix A.1).

    A file that cannot be decoded is replaced by the first readable one of the next few files, else of a few randomly
    drawn ones, since many files in a row may be unreadable. No more are tried, because on a failed disk each try may
    take minutes.

    Args:
        source: The images.
        augmentation: Augmentation of each image.
        seed: Seed of the run.
        cache_bytes: Memory for decoded images in bytes, in all loader processes together; 0 disables the cache.
    """

    def __init__(self, source: ImageSource, augmentation: Augmentation, seed: int, cache_bytes: int = 0) -> None:
        self.source = source
        self.augmentation = augmentation
        self.seed = seed
        self.cache = ImageCache(len(source), cache_bytes) if cache_bytes else None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, draw: Draw) -> Sample:
        unreadable: list[Unreadable] = []
        seed = derive_seed(self.seed, "augment", draw.epoch, draw.image)
        for index in self._tried(draw):
            try:
                image, cached = self._augmented(index, seed)
                return Sample(image, tuple(unreadable), cached, index)
            except ImageError as error:
                unreadable.append(Unreadable(self.source.name(index), error.reason))
        return Sample(None, tuple(unreadable))

    def __getitems__(self, draws: Sequence[Draw]) -> list[Sample]:
        """The samples of a batch, up to the first one without a readable image: then the batch is not used."""
        samples = []
        for draw in draws:
            samples.append(self[draw])
            if samples[-1].image is None:
                break
        return samples

    def _tried(self, draw: Draw) -> Iterator[int]:
        """The drawn image and its possible replacements, in the order in which they are tried."""
        total = len(self.source)
        near = min(total, MOST_TRIES if total <= MOST_TRIES else NEXT_TRIED)
        tried = [(draw.image + offset) % total for offset in range(near)]
        yield from tried
        generator = stream(self.seed, "replacement", draw.epoch, draw.image)
        while len(tried) < min(total, MOST_TRIES):
            index = int(torch.randint(total, (), generator=generator))
            if index not in tried:
                tried.append(index)
                yield index

    def _augmented(self, index: int, seed: int) -> tuple[Tensor, bool]:
        """The augmented image, and whether it came from the cache."""
        if self.cache is not None and (kept := self.cache.get(index)) is not None:
            return self.augmentation.crop(kept, seed), True
        name = self.source.name(index)
        with self.source.open(index) as file:
            if self.cache is not None and (room := self.cache.room):
                image = self.augmentation.keepable(file, name, room)
                if image is not None:
                    self.cache.keep(index, image)
                    return self.augmentation.crop(image, seed), False
                file.seek(0)
            return self.augmentation(file, name, seed), False
