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

# Files that are tried for one image: itself and the next ones, then others from anywhere.
NEXT_TRIED, MOST_TRIES = 8, 16


class Sample(NamedTuple):
    """A decoded, augmented image (H, W, C), and the unreadable files that were tried first.

    There is none where every file that was tried is unreadable.

    Attributes:
        number: Which image it is: the one that was drawn, or the one that took its place.
    """

    image: Tensor | None
    unreadable: tuple[Unreadable, ...]
    cached: bool = False
    number: int = -1


class ImageDataset(Dataset[Sample]):
    """Images with the official augmentation (Paper: Appendix A.1).

    A file that cannot be decoded is replaced by another one, so one bad file ends no run: by the first of the next few
    that can, else by the first of a few from anywhere, since a gap may be long. More are not tried: on a disk that is
    gone each try may take minutes.

    Args:
        source: The images.
        augmentation: What is done to each.
        seed: The run's seed.
        cache_bytes: How much memory decoded images may take, in all loader processes together; 0 keeps none.
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
        """The samples of a batch, up to the first for which no image can be read, without which it is not used."""
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
        """An image under the augmentation that the seed names, and whether it was kept."""
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
