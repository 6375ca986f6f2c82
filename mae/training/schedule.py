"""The learning rate over a run (Paper: Appendix A.1, Table 8)."""

from __future__ import annotations

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Learning rate as a function of the position in the run.

    Attributes:
        lr: Peak learning rate, reached after ``warmup_epochs``.
        min_lr: Learning rate at the end of the run.
        warmup_epochs, epochs: Length of the warm-up and of the run, in epochs.
    """

    lr: float
    min_lr: float
    warmup_epochs: float
    epochs: int

    def at(self, epoch: float) -> float:
        """The learning rate after ``epoch`` epochs, which may be fractional."""
        return lr_at(epoch, lr=self.lr, min_lr=self.min_lr, warmup_epochs=self.warmup_epochs, epochs=self.epochs)


def scaled_lr(base_lr: float, effective_batch_size: int) -> float:
    """The linear scaling rule (Goyal et al. 2017): ``base_lr * effective_batch_size / 256``."""
    return base_lr * effective_batch_size / 256


def lr_at(epoch: float, *, lr: float, min_lr: float, warmup_epochs: float, epochs: float) -> float:
    """Linear warm-up from 0, then half a cosine down to ``min_lr``.

    Args:
        epoch: Position in the run in epochs, with a fraction: epoch + batch / batches.
        lr: Peak learning rate, reached at ``warmup_epochs``.
        min_lr: Learning rate at the end of the run.
        warmup_epochs: Length of the warm-up in epochs.
        epochs: Length of the run in epochs.
    """
    if epoch < warmup_epochs or epochs == warmup_epochs:
        return lr * epoch / warmup_epochs
    progress = (epoch - warmup_epochs) / (epochs - warmup_epochs)
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * progress))
