"""What a run is going to do, worked out before it starts. Standard library only."""

from __future__ import annotations

import dataclasses
import math

from mae.errors import DataError
from mae.training.config import PretrainConfig
from mae.training.schedule import scaled_lr


@dataclasses.dataclass(frozen=True)
class TrainingPlan:
    """Counts and rates of a run.

    Attributes:
        pictures: Pictures to learn from.
        batch_size: Pictures in a batch over all processes; fewer than was asked for where there are no more.
        effective_batch: Pictures that one optimiser step averages over.
        lr: The peak learning rate.
        batches_per_epoch: Batches in an epoch.
        steps_per_epoch: Optimiser steps in an epoch; the last averages over the batches that are left.
        total_steps: Optimiser steps of the whole run.
        warnings: What the user may not have meant.
        pictures_digest: Tells one set of so many pictures from another by their names.
    """

    pictures: int
    batch_size: int
    accum_iter: int
    effective_batch: int
    lr: float
    batches_per_epoch: int
    steps_per_epoch: int
    total_steps: int
    warnings: tuple[str, ...]
    pictures_digest: str = ""


def make_plan(
    config: PretrainConfig, pictures: int, digest: str = "", *, processes: int = 1, batch_size: int | None = None
) -> TrainingPlan:
    """Work out a run.

    Args:
        config: Its settings.
        pictures, digest: Their number, and what their source tells of their names.
        processes: How many processes share each batch.
        batch_size: Pictures in a batch over all processes, where a run that goes on has fixed it.

    Raises:
        DataError: There are fewer pictures than processes.
    """
    warnings = []
    batch_size = batch_size or config.batch_size * processes
    if pictures < batch_size:
        if pictures < processes:
            raise DataError(f"{pictures} pictures are too few for {processes} processes")
        whole = pictures - pictures % processes
        warnings.append(f"{pictures} pictures do not fill a batch of {batch_size}; the batch is {whole}")
        batch_size = whole
    batches = pictures // batch_size
    accum_iter = min(config.accum_iter, batches)
    if accum_iter < config.accum_iter:
        warnings.append(
            f"an epoch has {batches} batches, so {accum_iter} and not {config.accum_iter} gradients are accumulated"
        )
    effective = batch_size * accum_iter
    steps = math.ceil(batches / accum_iter)
    if config.warmup_epochs >= config.epochs:
        warnings.append(
            f"the warm-up ({config.warmup_epochs:g} epochs) outlasts the run ({config.epochs}): the learning rate "
            f"never reaches its peak; --warmup-epochs {config.epochs * 0.05:.2g} would be the recipe's share"
        )
    lr = config.lr if config.lr is not None else scaled_lr(config.base_lr, effective)
    if config.min_lr > lr:
        warnings.append(f"--min-lr {config.min_lr:g} is above the peak learning rate {lr:.3g}")
    total = steps * config.epochs
    return TrainingPlan(pictures, batch_size, accum_iter, effective, lr, batches, steps, total, tuple(warnings), digest)
