"""What the training loop asks of a task; it knows nothing else of what is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from mae.training.events import Previewed
from mae.training.run_folder import Position


class Task(Protocol):
    """What differs between pre-training and training for something else.

    The loop hands each batch of images to ``TrainingStep`` together with the task's ``inputs``; resuming, saving,
    ranks, the log and the report are the same for all tasks.
    """

    def inputs(self, position: Position, batch: int) -> tuple[Any, ...]:
        """What the loss takes beside the images of a batch, for this process's part of it.

        Anything random comes from generators seeded by the run's seed and the place (epoch and batch), so that a
        resumed run draws the same.
        """
        ...

    def replayed(self, inputs: list[tuple[Any, ...]]) -> dict[str, Any]:
        """The inputs of a step's batches as a replay file holds them."""
        ...

    def preview(self, path: Path, epochs: int, *, write: bool) -> Previewed:
        """Draw what the model makes of a few images after so many epochs; every process takes part, one writes."""
        ...
