"""Labelled images of a run, divided into training, held-out and test images."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray

from mae.data.sources.base import ImageSource
from mae.data.sources.scan import ImageScan
from mae.errors import DataError
from mae.evaluation.splits import by_label, make_split, read_labels, stratified
from mae.io.text import shown
from mae.io.urls import public_name
from mae.system.seeding import stream
from mae.training.classifier_config import ClassifierConfig


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of labelled images: their numbers in a source, (N,), and their classes, (N,)."""

    images: NDArray[np.int64]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.images)

    def chosen(self, which: NDArray[np.int64]) -> Part:
        """A subset, by index."""
        return Part(self.images[which], self.labels[which])


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """The images of a classification run.

    Attributes:
        source: Source of all images.
        classes: Sorted names of the classes.
        train: Training images.
        held_out: Training images held out to choose the epoch; empty with ``--select last``.
        test: Test images.
        notes: Messages about the split.
    """

    source: ImageSource
    classes: tuple[str, ...]
    train: Part
    held_out: Part
    test: Part
    notes: tuple[str, ...]


def divide(scan: ImageScan, config: ClassifierConfig) -> LabelledImages:
    """Read the labels from the folders and divide the images.

    Raises:
        DataError: There are fewer than two class folders, or the parts have different classes.
    """
    where = ", ".join(shown(public_name(path)) for path in config.data)
    labels = read_labels(scan.images, config.data, [one.path for one in scan.unreadable], scan.looked_into)
    split = make_split(scan.images, labels, where, seed=config.seed, test_share=config.test_share)
    train, test = Part(split.train, split.train_labels), Part(split.test, split.test_labels)
    if config.label_fraction < 1:
        train = train.chosen(stratified(train.labels, config.label_fraction, config.seed, "labels"))
    held = np.zeros(len(train), dtype=bool)
    if config.select == "best":
        held[_held_out(train.labels, config.val_share, config.seed)] = True
        if not held.any():
            raise DataError(
                f"{where}: every class has only one training image, so none can be held out to choose the epoch",
                hint="add images, or train without held-out images: --select last",
            )
    return LabelledImages(
        scan.images,
        split.classes,
        train.chosen(np.flatnonzero(~held)),
        train.chosen(np.flatnonzero(held)),
        test,
        split.notes,
    )


def _held_out(labels: NDArray[np.int64], share: float, seed: int) -> NDArray[np.int64]:
    """Indices of a fraction of each class: at least one of its images, never all of them."""
    chosen = []
    for own in by_label(labels):
        order = torch.randperm(len(own), generator=stream(seed, "held out", int(labels[own[0]]))).numpy()
        chosen.append(own[order][: min(len(own) - 1, max(1, round(share * len(own))))])
    return np.concatenate(chosen)
