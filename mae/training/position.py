"""How far a run has come."""

from __future__ import annotations

import dataclasses
import math
from typing import Any


@dataclasses.dataclass(frozen=True)
class Position:
    """Progress of a run.

    Attributes:
        epoch: The current epoch, from 0.
        batch: Finished batches of this epoch, always whole optimiser steps.
        step: Finished optimiser steps of the whole run.
        loss_sum, lr_sum: Sums over the epoch's batches, so that a resumed epoch reports the same mean.
        left_out: Number of the epoch's batches whose step was skipped; they are not part of the means.
        in_a_row: Number of consecutive skipped steps up to this position.
        turn: Number of rollbacks; each one changes the order of the images.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    lr_sum: float = 0.0
    left_out: int = 0
    in_a_row: int = 0
    turn: int = 0

    @classmethod
    def from_plain(cls, values: Any) -> Position:
        """Parse the position of a saved state; missing entries (older versions) are 0.

        Raises:
            ValueError: An entry has an invalid value.
        """
        kinds = {field.name: type(field.default) for field in dataclasses.fields(cls)}
        if not isinstance(values, dict) or not {"epoch", "batch", "step"} <= set(values) <= set(kinds):
            raise ValueError("wanted a dict with epoch, batch and step as the position")
        for name, value in values.items():
            if type(value) not in (int, kinds[name]) or not 0 <= value < math.inf:
                raise ValueError(f"{name} has an invalid value")
        return cls(**values)
