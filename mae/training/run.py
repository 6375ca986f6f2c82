"""The run context (constant during training) and the training state."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from mae.system.distributed import Ranks
from mae.training.classifier_config import RunConfig
from mae.training.events import Event
from mae.training.plan import TrainingPlan
from mae.training.position import Position
from mae.training.run_folder import RunFolder
from mae.training.step import TrainingStep


@dataclasses.dataclass(frozen=True)
class Run:
    """What stays the same from the first step to the last.

    Attributes:
        config: All settings, with device and precision resolved.
        plan: Numbers that follow from them and the images: steps, batches, learning rate.
        ranks: The processes that share the run; all of them must call the same methods.
        device: Device of this process.
        folder: Folder of the run.
        on_event: Called with each event.
        should_stop: Called between steps; once it returns True, the state is saved and the run ends.
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
        position: Position of the run.
    """

    step: TrainingStep
    position: Position
