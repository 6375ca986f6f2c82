"""Computes all features that are not on the disk yet, in one pass over the images."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mae.data.eval_loader import EvalBatch, EvalDataset, eval_batches, in_batches
from mae.data.loader import loader_workers
from mae.errors import CheckpointError, DataError
from mae.evaluation.frozen import FrozenEncoder, View
from mae.evaluation.store import PartStore
from mae.io.text import shown
from mae.system.device import Computing


@dataclasses.dataclass(frozen=True)
class Progress:
    """Progress of a stage.

    Attributes:
        stage: Name of the stage, for messages.
        done, total: Numbers of images, or of what ``unit`` names.
        kept: Part of ``done`` that was already on the disk.
    """

    stage: str
    done: int
    total: int
    kept: int = 0
    unit: str = "images"


class Extractor(Protocol):
    """Computes arrays with one row per image."""

    name: str

    def arrays(self, imgs: Tensor, indices: Sequence[int]) -> Mapping[str, NDArray[Any]]:
        """Images (B, C, H, W) uint8 and their numbers in the source -> arrays by name, each with B rows or fewer."""


class ViewExtractor:
    """Computes views (pooled features) of a frozen encoder.

    Args:
        encoder: The encoder.
        views: Views to compute, with the dtype in which each is stored.
        with_patches: (N,), whether to store the patch tokens of an image; None to store all.
    """

    def __init__(
        self, encoder: FrozenEncoder, views: Mapping[View, str], with_patches: NDArray[np.bool_] | None = None
    ) -> None:
        self.encoder = encoder
        self.kept_as = dict(views)
        self.with_patches = with_patches
        self.name = encoder.name

    @property
    def row_bytes(self) -> int:
        """Bytes of the features of one image in all views."""
        return sum(
            int(np.prod(self.encoder.shape(view))) * np.dtype(kind).itemsize for view, kind in self.kept_as.items()
        )

    def arrays(self, imgs: Tensor, indices: Sequence[int]) -> dict[str, NDArray[Any]]:
        """The features of a batch by the name of the view."""
        found = self.encoder.views(imgs, self.kept_as)
        for view in found:
            if view.pool == "patches" and self.with_patches is not None:
                found[view] = found[view][torch.from_numpy(self.with_patches[list(indices)])]
        with np.errstate(over="ignore"):  # an overflow of float16 gives infinity, which ``_Collected.add`` reports
            return {view.name: tensor.cpu().numpy().astype(self.kept_as[view]) for view, tensor in found.items()}


@dataclasses.dataclass(frozen=True)
class Job:
    """An extractor, the store of its features, and the numbers of the parts to compute in this process."""

    extractor: Extractor
    store: PartStore
    parts: Sequence[int]


def extract(
    dataset: EvalDataset,
    jobs: Sequence[Job],
    computing: Computing,
    *,
    batch_size: int,
    workers: int | None,
    on_progress: Callable[[Progress], None],
    stage: str,
    kept: int = 0,
) -> float:
    """Compute the parts of all jobs, decoding each image once.

    All stores must have parts of the same size.

    Args:
        dataset: The images.
        jobs: The features to compute.
        computing: Device and precision.
        batch_size, workers: Batch size and number of loader processes.
        on_progress: Called with the progress.
        stage: Name of this stage.
        kept: Number of images that were already done.

    Returns:
        Seconds spent in the extractors, without decoding and writing.

    Raises:
        DataError: A loader process died, or a part cannot be written.
        CheckpointError: Features are non-finite.
    """
    wanted: dict[int, list[Job]] = {}
    for job in jobs:
        for part in job.parts:
            wanted.setdefault(part, []).append(job)
    if not wanted:
        return 0.0
    store = jobs[0].store
    batches = [batch for part in sorted(wanted) for batch in in_batches(store.indices(part), batch_size)]
    total = sum(len(batch) for batch in batches)
    total, done, seconds = total + kept, kept, 0.0
    on_progress(Progress(stage, done, total, kept))
    loaded = eval_batches(
        dataset,
        batches,
        workers=loader_workers(workers, computing.device),
        pin_memory=computing.device.type == "cuda",
    )
    for part in sorted(wanted):
        collected = [_Collected(job) for job in wanted[part]]
        unreadable: list[tuple[int, str]] = []
        for batch in itertools.islice(loaded, -(-len(store.indices(part)) // batch_size)):
            began = time.monotonic()
            for one in collected:
                one.add(dataset, batch)
            seconds += time.monotonic() - began
            unreadable += batch.unreadable
            done += len(batch.indices) + len(batch.unreadable)
            on_progress(Progress(stage, done, total, kept))
        for one in collected:
            one.job.store.write(part, one.arrays(), unreadable)
    return seconds


class _Collected:
    """Rows of a part, collected over batches."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._pieces: dict[str, list[NDArray[Any]]] = {}

    def add(self, dataset: EvalDataset, batch: EvalBatch) -> None:
        """Add the rows of another batch."""
        for name, array in self.job.extractor.arrays(batch.images, batch.indices).items():
            finite = np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
            if not finite.all():
                row = int(np.flatnonzero(~finite)[0])
                of = f" of {shown(dataset.source.name(batch.indices[row]))}" if len(array) == len(batch.indices) else ""
                raise CheckpointError(
                    f"{self.job.extractor.name}: its features ({name}){of} are non-finite",
                    hint="if this also happens with --precision fp32 and --dtype float32, its training has diverged",
                )
            self._pieces.setdefault(name, []).append(array)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All rows by name."""
        return {name: np.concatenate(pieces) for name, pieces in self._pieces.items()}


def check_unreadable(skipped: Sequence[tuple[str, str]], images: int, most: float) -> None:
    """Check the number of unreadable images.

    Args:
        skipped: (name, reason) of the unreadable images.
        images: Total number of images.
        most: Largest allowed fraction of unreadable images.

    Raises:
        DataError: A larger fraction is unreadable, or no image is readable.
    """
    if skipped and (len(skipped) > most * images or len(skipped) >= images):
        name, reason = skipped[0]
        raise DataError(
            f"{len(skipped):,} of {images:,} images cannot be read, for instance {shown(name)}: {reason}",
            hint="repair or remove them, or allow more with --max-unreadable",
        )
