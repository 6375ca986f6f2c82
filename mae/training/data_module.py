"""The batches of a run for this process, from any position of the run."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch

from mae.data.augment import Augmentation
from mae.data.dataset import ImageDataset
from mae.data.image_cache import ImageCache
from mae.data.loader import Batch, Batches, collate, loader_workers, local_processes, make_loader
from mae.data.prefetch import Prefetcher
from mae.data.sampler import Draw, EpochBatches
from mae.data.shared_memory import IS_SHARED
from mae.data.sources.base import ImageSource
from mae.system.distributed import Ranks
from mae.training.plan import TrainingPlan
from mae.training.position import Position

LOADED_AHEAD = 4  # batches that each loader process prepares ahead
BATCHES_AHEAD = 16  # further batches whose files are fetched ahead


class DataModule:
    """Provides batches that depend only on the position in the run, not on earlier batches.

    Args:
        plan: Plan of the run, with the number of images, batch size, epochs and seed.
        images: All training images.
        augmentation: Augmentation of each image, such as crop and flip.
        ranks: The processes that share each batch.
        device: The device that the batches are copied to.
        workers: Number of loader processes; None to choose it from the number of CPU cores.
        cache_bytes: Memory for decoded images in bytes, in all processes of a machine together.
    """

    def __init__(
        self,
        plan: TrainingPlan,
        images: ImageSource,
        augmentation: Augmentation,
        ranks: Ranks,
        device: torch.device,
        *,
        workers: int | None,
        cache_bytes: int,
    ) -> None:
        self.plan = plan
        self.images = images
        self.ranks = ranks
        self.pin_memory = device.type == "cuda"
        self.workers = loader_workers(workers, device)
        self.caches = cache_bytes > 0
        cache_bytes //= 1 if IS_SHARED else max(1, self.workers)
        self.dataset = ImageDataset(images, augmentation, plan.seed, cache_bytes)
        self._share_memory(cache_bytes)
        self._batches: Batches | None = None
        self._prefetcher: Prefetcher | None = None

    def _share_memory(self, cache_bytes: int) -> None:
        """Use the cache of this machine's first process, since another epoch gives an image to another process."""
        if self.ranks.alone:
            return
        cache = self.dataset.cache
        memories = [*([cache.memory] if cache else []), *self.images.memories]
        first = self.ranks.gather([memory.address for memory in memories])[self.ranks.rank - self.ranks.local_rank]
        adopted = [memory.adopt(address) for memory, address in zip(memories, first, strict=True)]
        if cache and not adopted[0]:  # the limit applies to the machine, and this process could not share
            self.dataset.cache = ImageCache(len(self.images), max(1, cache_bytes // local_processes()))

    def batches(self, position: Position) -> Batches:
        """All batches from a position to the end of the run."""
        loader = make_loader(self.dataset, self._draws(position), workers=self.workers, pin_memory=self.pin_memory)
        return Batches(loader)

    def seek(self, position: Position) -> None:
        """Start the loader processes so that the next batch is the one at ``position``."""
        self.close()
        self._batches = self.batches(position)
        if self.images.is_remote:  # only after the loader processes were started: a fork does not copy threads
            ahead = BATCHES_AHEAD + max(1, self.workers) * LOADED_AHEAD
            self._prefetcher = Prefetcher(self.images, self._draws(position), ahead)

    def close(self) -> None:
        """Stop prefetching."""
        if self._prefetcher is not None:
            self._prefetcher.stop()
            self._prefetcher = None

    def next_batch(self) -> Batch:
        """The next batch; ``seek`` must have been called.

        Raises:
            RuntimeError: ``seek`` was not called.
        """
        if self._batches is None:
            raise RuntimeError("call seek before next_batch: no position was set")
        if self._prefetcher is not None:
            self._prefetcher.advance()
        return next(self._batches)

    def explain(self, error: Exception) -> Exception:
        """An error that names the dead loader process if its death caused ``error``, else ``error`` itself."""
        return error if self._batches is None else self._batches.explain(error)

    def names(self, position: Position, batches: int) -> list[Path]:
        """Names of the images of ``batches`` batches from a position on."""
        return [self.images.name(draw.image) for batch in self._next(position, batches) for draw in batch]

    def again(self, position: Position, batches: int) -> list[Batch]:
        """``batches`` batches from a position on, decoded in this process."""
        return [collate([self.dataset[draw] for draw in batch]) for batch in self._next(position, batches)]

    def _next(self, position: Position, batches: int) -> list[list[Draw]]:
        return list(itertools.islice(iter(self._draws(position)), batches))

    def _draws(self, position: Position) -> EpochBatches:
        return EpochBatches(
            self.plan.images,
            self.plan.global_batch_size,
            self.plan.epochs,
            self.plan.seed,
            position.epoch,
            position.batch,
            groups=self.images.groups,
            rank=self.ranks.rank,
            world_size=self.ranks.size,
            turn=position.turn,
        )
