"""Every image once, in order, at the model's image size, for computing features."""

from __future__ import annotations

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
    """One image as uint8 (C, H, W), or why there is none."""

    number: int
    image: Tensor | None
    reason: str


class EvalBatch(NamedTuple):
    """Images that could be read, and those that could not.

    Attributes:
        indices: Which images of the source these are.
        images: (B, C, H, W) uint8.
        unreadable: (index, reason) of the others.
    """

    indices: tuple[int, ...]
    images: Tensor
    unreadable: tuple[tuple[int, str], ...]


class EvalDataset(Dataset[EvalSample]):
    """Images of a source in the model's frame; an unreadable one has its reason in the image's place."""

    def __init__(self, source: ImageSource, transform: EvalTransform, in_chans: int) -> None:
        self.source = source
        self.transform = transform
        self.in_chans = in_chans

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> EvalSample:
        try:
            return EvalSample(index, self.transform(self.source.load(index, self.in_chans)), "")
        except ImageError as error:
            return EvalSample(index, None, error.reason)


def eval_batches(
    dataset: EvalDataset, batches: Sequence[Sequence[int]], *, workers: int, pin_memory: bool = False
) -> Iterator[EvalBatch]:
    """Batches of images by their numbers, in this order.

    Raises:
        DataError: A loader process died.
    """
    generator = torch.Generator().manual_seed(0)
    loader = loader_of(dataset, batches, _Collate(dataset), generator, workers=workers, pin_memory=pin_memory)
    return cast(Iterator[EvalBatch], Batches(loader))


class _Collate:
    """Samples as one batch; a class and no closure, since loader processes may be spawned."""

    def __init__(self, dataset: EvalDataset) -> None:
        self.shape = (0, dataset.in_chans, *dataset.transform.image_size)

    def __call__(self, samples: list[EvalSample]) -> EvalBatch:
        images = [sample.image for sample in samples if sample.image is not None]
        return EvalBatch(
            tuple(sample.number for sample in samples if sample.image is not None),
            torch.stack(images) if images else torch.empty(self.shape, dtype=torch.uint8),
            tuple((sample.number, sample.reason) for sample in samples if sample.image is None),
        )
