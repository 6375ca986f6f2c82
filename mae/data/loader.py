"""Training batches: augmented images in a seeded order, from any step of the run on."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mae.data.dataset import ImageDataset, Sample
from mae.data.sampler import EpochBatches
from mae.data.sources.scan import Unreadable
from mae.errors import DataError
from mae.system.environment import usable_cores
from mae.system.seeding import stream

SECONDS_TO_DIE = 2.0


class Batch(NamedTuple):
    """A batch of images, and the unreadable files that were found while loading it.

    Attributes:
        images: (B, C, H, W) uint8, or float32 if the augmentation normalises, channels last in memory; empty if an
            image could neither be read nor replaced.
        unreadable: All files that could not be read.
        not_replaced: The files that were tried for an image that could neither be read nor replaced.
        cached: Number of images that came from ``--cache``.
        indices: Numbers of the images in the source.
    """

    images: Tensor
    unreadable: tuple[Unreadable, ...]
    not_replaced: tuple[Unreadable, ...] = ()
    cached: int = 0
    indices: tuple[int, ...] = ()


def make_loader(
    dataset: ImageDataset, batches: EpochBatches, *, workers: int, pin_memory: bool = False
) -> DataLoader[Batch]:
    """A loader over all batches of the run; the batches do not depend on the number of workers."""
    generator = stream(batches.seed, "loader")
    return loader_of(dataset, batches, collate, generator, workers=workers, pin_memory=pin_memory)


def loader_of(
    dataset: Any, batches: Any, collate: Any, generator: torch.Generator, *, workers: int, pin_memory: bool
) -> DataLoader[Any]:
    """Torch's DataLoader over batches of a dataset's indices, with the settings that all loaders here share.

    ``Batches`` iterates over it: a batch that cannot be loaded is a ``DataError`` in its place.

    Args:
        dataset, batches, collate: ``dataset``, ``batch_sampler`` and ``collate_fn`` of DataLoader.
        generator: Source of the loader's base seed; without it, torch's global generator would be used and changed.
        workers: Number of loader processes.
        pin_memory: Whether to copy batches to pinned memory.
    """
    return DataLoader(
        _WholeBatches(dataset, collate),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=start_worker,
        pin_memory=pin_memory,
        prefetch_factor=4 if workers else None,
        generator=generator,
    )


class _WholeBatches(Dataset[Any]):
    """Loads batches of a dataset; returns a ``DataError``, since torch would send the text of a raised one alone."""

    def __init__(self, dataset: Any, collate: Any) -> None:
        self.dataset = dataset
        self.collate = collate

    def __getitems__(self, indices: Sequence[Any]) -> Any:
        try:
            several = getattr(self.dataset, "__getitems__", None)
            return self.collate(several(indices) if several else [self.dataset[index] for index in indices])
        except DataError as error:
            return error


def _as_it_is(batch: Any) -> Any:
    return batch


def loader_workers(wanted: int | None, device: torch.device) -> int:
    """Number of loader processes: ``wanted``, else 1 on a CPU, else at most 16, one per core less one for training."""
    if wanted is not None:
        return wanted
    cores = int(usable_cores() or 1)
    return 1 if device.type == "cpu" else max(1, min(16, cores // local_processes() - 1))


def local_processes() -> int:
    """Number of the run's processes on this machine, by torchrun's environment variables."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


class LoaderError(DataError, RuntimeError):
    """A loader process has died. Also a RuntimeError, like torch's own error for it."""


class Batches(Iterator[Batch]):
    """Iterates over a loader's batches; if a loader process dies, raises an error that names the cause.

    torch's signal handler raises a RuntimeError at any point of the training process as soon as a loader process dies,
    unless a broken connection raises another error first. ``explain`` turns both into the same error.
    """

    def __init__(self, loader: DataLoader[Batch]) -> None:
        self._batches = iter(loader)
        self.workers: Sequence[Any] = getattr(self._batches, "_workers", ())

    def __next__(self) -> Batch:
        try:
            batch: Batch | DataError = next(self._batches)
        except (EOFError, OSError, RuntimeError) as error:
            explained = self.explain(error)
            try:
                if explained is error:
                    raise
                raise explained from None
            finally:
                del explained  # as below
        if isinstance(batch, DataError):
            try:
                raise batch
            finally:
                del batch  # the error would hold this frame, and with it the loader processes, until it is collected
        return batch

    def explain(self, error: Exception) -> Exception:
        """A ``LoaderError`` if ``error`` was caused by the death of a loader process, else the error itself."""
        if isinstance(error, LoaderError) or not (
            isinstance(error, EOFError | OSError) or "DataLoader worker" in str(error)
        ):
            return error
        # Otherwise the signal handler would raise again for every further process that ends.
        if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD"):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        end = time.monotonic() + SECONDS_TO_DIE
        while not (dead := [worker for worker in self.workers if worker.exitcode]) and time.monotonic() < end:
            time.sleep(0.01)
        if not dead:
            return error
        code = dead[0].exitcode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return LoaderError(
            f"loader process {dead[0].pid} {how}",
            hint="the system kills processes when memory runs short: fewer --workers, a smaller --cache or "
            "--batch-size need less",
        )


def start_worker(worker: int) -> None:
    """Set up a loader process so that only the main process decides when it ends, and reports errors.

    Signals to the whole process group, such as Ctrl-C or torchrun's SIGTERM, are for the main process: it saves, and
    needs its loader processes for that. So they leave the group, which Windows does not have, and ignore Ctrl-C there.
    If the main process ends abruptly, the connection breaks while a batch is being sent; that error is not printed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "win32":
        os.setpgrp()
    sys.excepthook = _say_unless_left


def _say_unless_left(kind: type[BaseException], error: BaseException, at: TracebackType | None) -> None:
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, at)


def collate(samples: list[Sample]) -> Batch:
    """Stack samples to a batch."""
    unreadable = tuple(bad for sample in samples for bad in sample.unreadable)
    images = [sample.image for sample in samples if sample.image is not None]
    if len(images) < len(samples):
        return Batch(torch.empty(0, dtype=torch.uint8), unreadable, samples[-1].unreadable)
    cached = sum(sample.cached for sample in samples)
    indices = tuple(sample.number for sample in samples)
    return Batch(torch.stack(images).permute(0, 3, 1, 2), unreadable, cached=cached, indices=indices)
