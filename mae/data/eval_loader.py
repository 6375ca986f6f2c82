"""Loads every image once, in order, at the model's image size, for computing features."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mae.data.decoding.formats import ImageError
from mae.data.eval_transform import EvalTransform
from mae.data.loader import Batches, loader_of
from mae.data.sources.base import ImageSource


class EvalSample(NamedTuple):
    """One image as uint8 (C, H, W), or the reason why it cannot be read."""

    number: int
    image: Tensor | None
    reason: str


class EvalBatch(NamedTuple):
    """The readable images of a batch, and the numbers of the unreadable ones.

    Attributes:
        indices: Numbers of the readable images in the source, (B,).
        images: (B, C, H, W) uint8.
        unreadable: (index, reason) of the unreadable images.
    """

    indices: tuple[int, ...]
    images: Tensor
    unreadable: tuple[tuple[int, str], ...]


@dataclasses.dataclass(eq=False)
class EvalDataset(Dataset[EvalSample]):
    """Images of a source, resized and cropped to the model's image size; unreadable ones come with the reason."""

    source: ImageSource
    transform: EvalTransform
    in_chans: int

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> EvalSample:
        try:
            return EvalSample(index, self.transform(self.source.load(index, self.in_chans)), "")
        except ImageError as error:
            return EvalSample(index, None, error.reason)

    def is_readable(self, index: int) -> bool:
        """Whether an image can be read; decodes it."""
        return self[index].image is not None


def in_batches(numbers: Sequence[int], size: int) -> list[Sequence[int]]:
    """Divide numbers of images into batches of ``size``; the last one may be smaller."""
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]


def eval_batches(
    dataset: EvalDataset, batches: Sequence[Sequence[int]], *, workers: int, pin_memory: bool = False
) -> Iterator[EvalBatch]:
    """Load batches of images, given by their numbers, in the given order.

    Raises:
        DataError: A loader process died.
    """
    generator = torch.Generator().manual_seed(0)
    loader = loader_of(dataset, batches, _Collate(dataset), generator, workers=workers, pin_memory=pin_memory)
    return cast(Iterator[EvalBatch], Batches(loader))


class _Collate:
    """Stacks samples to a batch; a class, because a closure cannot be sent to spawned loader processes."""

    def __init__(self, dataset: EvalDataset) -> None:
        self.shape = (0, dataset.in_chans, *dataset.transform.image_size)

    def __call__(self, samples: list[EvalSample]) -> EvalBatch:
        images = [sample.image for sample in samples if sample.image is not None]
        return EvalBatch(
            tuple(sample.number for sample in samples if sample.image is not None),
            torch.stack(images) if images else torch.empty(self.shape, dtype=torch.uint8),
            tuple((sample.number, sample.reason) for sample in samples if sample.image is None),
        )
