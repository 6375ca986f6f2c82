"""Training batches: augmented pictures in a seeded order that any step can be resumed from."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from mae.data.augment import Augmentation
from mae.data.formats import PictureError
from mae.data.image_cache import ImageCache
from mae.data.scan import Unreadable
from mae.data.source import GROUPS_AT_ONCE, PictureSource
from mae.errors import ConfigError, DataError
from mae.seeding import stream, stream_seed

SECONDS_TO_DIE = 2.0
# Files that are tried for one image: itself and the next ones, then others from anywhere.
NEXT_TRIED, MOST_TRIES = 8, 16


class Draw(NamedTuple):
    """One picture in one epoch: it names the stream of its augmentation."""

    epoch: int
    picture: int


class Sample(NamedTuple):
    """A decoded, augmented image (H, W, C) uint8, and the files that had to be passed over for it.

    There is none where every file that was tried is unreadable.
    """

    image: Tensor | None
    unreadable: tuple[Unreadable, ...]
    cached: bool = False


class Batch(NamedTuple):
    """Images, and the files that had to be passed over.

    Attributes:
        images: (B, C, H, W) uint8 with channels last in memory; none if one of them could not be had.
        unreadable: All files that were passed over.
        not_replaced: Those that were tried for an image that could not be had.
        cached: How many of the images were decoded already, as ``--cache`` had kept them.
    """

    images: Tensor
    unreadable: tuple[Unreadable, ...]
    not_replaced: tuple[Unreadable, ...] = ()
    cached: int = 0


class PictureDataset(Dataset[Sample]):
    """Pictures with the official augmentation (Paper: Appendix A.1).

    A file that cannot be decoded is replaced by another one, so one bad file ends no run: by the first of the next few
    that can, else by the first of a few from anywhere, since a gap may be long. More are not tried: on a disk that is
    gone each try may take minutes.

    Args:
        source: The pictures.
        augmentation: What is done to each.
        seed: The run's seed.
        cache_bytes: How much memory decoded pictures may take, in all loader processes together; 0 keeps none.
    """

    def __init__(self, source: PictureSource, augmentation: Augmentation, seed: int, cache_bytes: int = 0) -> None:
        self.source = source
        self.augmentation = augmentation
        self.seed = seed
        self.cache = ImageCache(len(source), cache_bytes) if cache_bytes else None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, draw: Draw) -> Sample:
        unreadable: list[Unreadable] = []
        seed = stream_seed(self.seed, "augment", draw.epoch, draw.picture)
        for index in self._tried(draw):
            try:
                image, cached = self._augmented(index, seed)
                return Sample(image, tuple(unreadable), cached)
            except PictureError as error:
                unreadable.append(Unreadable(self.source.name(index), error.reason))
        return Sample(None, tuple(unreadable))

    def __getitems__(self, draws: Sequence[Draw]) -> list[Sample]:
        """The samples of a batch, up to the first that cannot be had: the batch is of no use without it."""
        samples = []
        for draw in draws:
            samples.append(self[draw])
            if samples[-1].image is None:
                break
        return samples

    def _tried(self, draw: Draw) -> Iterator[int]:
        """The image that was drawn and those that may take its place, in the order in which they are tried."""
        total = len(self.source)
        near = min(total, MOST_TRIES if total <= MOST_TRIES else NEXT_TRIED)
        tried = [(draw.picture + offset) % total for offset in range(near)]
        yield from tried
        generator = stream(self.seed, "replacement", draw.epoch, draw.picture)
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


class EpochBatches(Sampler[list[Draw]]):
    """Every epoch's pictures in a shuffled order, cut into full batches, from any place of the run on.

    The last pictures of an order that fill no batch are left out of that epoch, as in the official
    recipe. The epochs follow each other without a gap, so workers never wait at their boundary.

    Several ranks share each batch: its pictures are the same and in the same order whatever their number, and
    rank r takes the r-th of equal slices.

    Args:
        pictures: Number of pictures.
        batch_size: Pictures in a batch over all ranks, at most ``pictures``.
        epochs: Epochs of the whole run.
        seed: The run's seed.
        start_epoch, start_batch: Where to go on.
        groups: Sizes of the parts that are read as a whole, from the source; see ``epoch_order``.
        rank, world_size: Which slice of each batch is drawn, and how many there are.
        turn: Each number gives other orders.

    Raises:
        ConfigError: The ranks cannot share a batch equally.
    """

    def __init__(
        self,
        pictures: int,
        batch_size: int,
        epochs: int,
        seed: int,
        start_epoch: int = 0,
        start_batch: int = 0,
        *,
        groups: Sequence[int] = (),
        rank: int = 0,
        world_size: int = 1,
        turn: int = 0,
    ) -> None:
        if batch_size % world_size:
            raise ConfigError(f"a batch of {batch_size} pictures cannot be shared equally by {world_size} processes")
        self.pictures = pictures
        self.batch_size = batch_size
        self.epochs = epochs
        self.seed = seed
        self.start_epoch = start_epoch
        self.start_batch = start_batch
        self.groups = groups
        self.rank = rank
        self.world_size = world_size
        self.turn = turn

    def __iter__(self) -> Iterator[list[Draw]]:
        first, share = self.start_batch, self.batch_size // self.world_size
        for epoch in range(self.start_epoch, self.epochs):
            place = ("order", epoch, self.turn) if self.turn else ("order", epoch)
            order = epoch_order(self.pictures, self.groups, stream(self.seed, *place))
            for batch in range(first, self.pictures // self.batch_size):
                start = batch * self.batch_size + self.rank * share
                yield [Draw(epoch, index) for index in order[start : start + share].tolist()]
            first = 0


def epoch_order(pictures: int, groups: Sequence[int], generator: torch.Generator) -> Tensor:
    """A shuffled order of an epoch's pictures, (pictures,) int64.

    Where pictures are read in groups, the groups are shuffled and then the pictures of ``GROUPS_AT_ONCE`` groups
    among each other, so that a group is read once and not for every picture.
    """
    if not groups:
        return torch.randperm(pictures, generator=generator)
    starts = torch.tensor([0, *groups[:-1]]).cumsum(0)
    shuffled = torch.randperm(len(groups), generator=generator).tolist()
    parts = []
    for start in range(0, len(shuffled), GROUPS_AT_ONCE):
        window = torch.cat(
            [torch.arange(int(starts[group]), int(starts[group]) + groups[group])
             for group in shuffled[start : start + GROUPS_AT_ONCE]]
        )  # fmt: skip
        parts.append(window[torch.randperm(len(window), generator=generator)])
    return torch.cat(parts)


def make_loader(
    dataset: PictureDataset, batches: EpochBatches, *, workers: int, pin_memory: bool = False
) -> DataLoader[Batch]:
    """A loader over all the run's batches; the same batches whatever the number of workers."""
    return DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=_ignore_interrupt,
        pin_memory=pin_memory,
        prefetch_factor=4 if workers else None,
        # Its base seed would otherwise be drawn from torch's global stream.
        generator=stream(batches.seed, "loader"),
    )


def loader_workers(wanted: int | None, device: torch.device) -> int:
    """Loader processes: a core for each, but one for the training process, which on a CPU needs them itself."""
    if wanted is not None:
        return wanted
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if device.type == "cpu" else max(1, min(16, cores // local_processes() - 1))


def local_processes() -> int:
    """Processes of the run on this machine, as torchrun says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


class LoaderError(DataError, RuntimeError):
    """A loader process is gone. Also a RuntimeError, as torch's own report of it is."""


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


def _ignore_interrupt(worker: int) -> None:
    """Ctrl-C reaches the whole process group; the training process alone decides when workers end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def collate(samples: list[Sample]) -> Batch:
    """Samples as one batch."""
    unreadable = tuple(bad for sample in samples for bad in sample.unreadable)
    images = [sample.image for sample in samples if sample.image is not None]
    if len(images) < len(samples):
        return Batch(torch.empty(0, dtype=torch.uint8), unreadable, samples[-1].unreadable)
    cached = sum(sample.cached for sample in samples)
    return Batch(torch.stack(images).permute(0, 3, 1, 2), unreadable, cached=cached)
