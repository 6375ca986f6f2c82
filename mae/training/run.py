"""The run context: what a run is, and stays, while it trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from mae.system.distributed import Ranks
from mae.training.classifier_config import RunConfig
from mae.training.events import Event
from mae.training.plan import TrainingPlan
from mae.training.run_folder import Position, RunFolder
from mae.training.step import TrainingStep


@dataclasses.dataclass(frozen=True)
class Run:
    """What stays the same from the first step to the last.

    Attributes:
        config: The settings, with device and precision resolved.
        plan: What follows from them for this data set: steps, batches, learning rate.
        ranks: The processes that share the run; all of them call the same methods.
        device: Where this process computes.
        folder: Where the run writes.
        on_event: Told what happens.
        should_stop: Asked between steps; once true, the state is saved and the run ends.
    """

    config: RunConfig
    plan: TrainingPlan
    ranks: Ranks
    device: torch.device
    folder: RunFolder
    on_event: Callable[[Event], None]
    should_stop: Callable[[], bool]

    def epochs_at(self, position: Position) -> float:
        """A position in epochs from the run's start."""
        return position.epoch + position.batch / self.plan.batches_per_epoch

    def lr_at(self, position: Position) -> float:
        """The learning rate of the step that begins at a position."""
        return self.plan.schedule.at(self.epochs_at(position))


@dataclasses.dataclass
class TrainingState:
    """What changes with every step.

    Attributes:
        step: Model, optimiser and gradient scaler.
        position: How far the run has come.
    """

    step: TrainingStep
    position: Position
