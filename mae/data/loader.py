"""Training batches: augmented images in a seeded order that any step can be resumed from."""

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
from torch.utils.data import DataLoader

from mae.data.dataset import ImageDataset, Sample
from mae.data.sampler import EpochBatches
from mae.data.sources.scan import Unreadable
from mae.errors import DataError
from mae.system.environment import usable_cores
from mae.system.seeding import stream

SECONDS_TO_DIE = 2.0


class Batch(NamedTuple):
    """Images, and the unreadable files met on the way.

    Attributes:
        images: (B, C, H, W) uint8, or float32 where the augmentation normalises, with channels last in memory; none if
            one of them could not be had.
        unreadable: All files that could not be read.
        not_replaced: Those that were tried for an image that could not be had.
        cached: How many of the images were decoded already, as ``--cache`` had kept them.
        indices: Which images of the source these are.
    """

    images: Tensor
    unreadable: tuple[Unreadable, ...]
    not_replaced: tuple[Unreadable, ...] = ()
    cached: int = 0
    indices: tuple[int, ...] = ()


def make_loader(
    dataset: ImageDataset, batches: EpochBatches, *, workers: int, pin_memory: bool = False
) -> DataLoader[Batch]:
    """A loader over all the run's batches; the same batches whatever the number of workers."""
    generator = stream(batches.seed, "loader")
    return loader_of(dataset, batches, collate, generator, workers=workers, pin_memory=pin_memory)


def loader_of(
    dataset: Any, batches: Any, collate: Any, generator: torch.Generator, *, workers: int, pin_memory: bool
) -> DataLoader[Any]:
    """Torch's loader over batches of a dataset's indices, with what all loaders here have in common.

    Args:
        dataset, batches, collate: As torch's loader takes them.
        generator: What the loader draws its base seed from; else that would come from torch's global stream.
        workers: Loader processes.
        pin_memory: Whether batches lie in pinned memory.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=start_worker,
        pin_memory=pin_memory,
        prefetch_factor=4 if workers else None,
        generator=generator,
    )


def loader_workers(wanted: int | None, device: torch.device) -> int:
    """Loader processes: a core for each, but one for the training process, which on a CPU needs them itself."""
    if wanted is not None:
        return wanted
    cores = int(usable_cores() or 1)
    return 1 if device.type == "cpu" else max(1, min(16, cores // local_processes() - 1))


def local_processes() -> int:
    """Processes of the run on this machine, as torchrun says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


class LoaderError(DataError, RuntimeError):
    """A loader process has died. Also a RuntimeError, like torch's own error for it."""


class Batches(Iterator[Batch]):
    """A loader's batches; a loader process that dies becomes an error that names the cause.

    torch notices the death by a signal, at once and wherever the training process is, and raises a RuntimeError
    there; or the death is met first as a broken connection. ``explain`` turns either into the same error.
    """

    def __init__(self, loader: DataLoader[Batch]) -> None:
        self._batches = iter(loader)
        self.workers: Sequence[Any] = getattr(self._batches, "_workers", ())

    def __next__(self) -> Batch:
        try:
            batch: Batch = next(self._batches)
            return batch
        except DataError as error:
            raise _without_traceback(error) from None
        except (EOFError, OSError, RuntimeError) as error:
            explained = self.explain(error)
            if explained is error:
                raise
            raise explained from None

    def explain(self, error: Exception) -> Exception:
        """A ``LoaderError`` if a loader process died and ``error`` came of it, else the error itself."""
        if isinstance(error, LoaderError) or not (
            isinstance(error, EOFError | OSError) or "DataLoader worker" in str(error)
        ):
            return error
        # The signal would raise again and again, for every other process that ends.
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


def _without_traceback(error: DataError) -> DataError:
    """An error of a loader process, into whose message torch has put the traceback there, as it was raised."""
    if not error.message.startswith("Caught "):
        return error
    raised = type(error).__name__
    last = error.message.rpartition(f"{raised}: ")[2].strip()
    return type(error)(last)


def start_worker(worker: int) -> None:
    """Set up a loader process: only the main process decides when it ends, and reports why.

    Ctrl-C reaches the whole process group; and a main process that ends at once closes the connection over which it
    was being given a batch.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = _say_unless_left


def _say_unless_left(kind: type[BaseException], error: BaseException, at: TracebackType | None) -> None:
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, at)


def collate(samples: list[Sample]) -> Batch:
    """Samples as one batch."""
    unreadable = tuple(bad for sample in samples for bad in sample.unreadable)
    images = [sample.image for sample in samples if sample.image is not None]
    if len(images) < len(samples):
        return Batch(torch.empty(0, dtype=torch.uint8), unreadable, samples[-1].unreadable)
    cached = sum(sample.cached for sample in samples)
    indices = tuple(sample.number for sample in samples)
    return Batch(torch.stack(images).permute(0, 3, 1, 2), unreadable, cached=cached, indices=indices)
