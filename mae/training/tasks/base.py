"""The interface between the training loop and a task."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mae.data.augment import Augmentation
from mae.data.loader import Batch
from mae.data.sources.base import ImageSource
from mae.data.sources.scan import Unreadable
from mae.training.events import Classification, Previewed, Probed, Validated
from mae.training.plan import Advice
from mae.training.position import Position
from mae.training.probes import Probes
from mae.training.run import Run


class Task(abc.ABC):
    """What differs between pre-training and training for something else.

    The loop passes each batch of images with the task's ``inputs`` to ``TrainingStep``. Resuming, saving, distribution,
    log and report are the same for all tasks.

    Attributes:
        model: The model; ``model.config`` has its sizes.
        images: Training images.
        unreadable, others: Files that the scan could not read, and the number of files that are not images.
        augmentation: Augmentation of each training image.
        notes: Messages for the user before the first step.
        run: The run, from ``begin`` on.
        classification: Data and model of a classification run, for the plan; None for pre-training.
        probes: Measures held-out loss and probes during training; None for other tasks, or before ``begin``.
    """

    model: Any
    images: ImageSource
    unreadable: Sequence[Unreadable]
    others: int
    augmentation: Augmentation
    notes: tuple[str, ...]
    run: Run
    classification: Classification | None = None
    probes: Probes | None = None

    @property
    @abc.abstractmethod
    def zero_prediction_loss(self) -> float:
        """The loss of predicting zero (or equal class probabilities); available after ``begin``."""

    @property
    def clip_grad(self) -> float | None:
        """Largest gradient norm; larger gradients are scaled down to it. None disables clipping."""
        return None

    @abc.abstractmethod
    def begin(self, run: Run, position: Position) -> None:
        """Prepare for training from a position; called once the plan is made and the model is on its device."""

    @abc.abstractmethod
    def loss(self) -> nn.Module:
        """The loss as a module: its forward pass takes normalised images and the ``inputs``."""

    @abc.abstractmethod
    def make_optimizer(self, lr: float) -> torch.optim.Optimizer:
        """The optimiser of the model's parameters; called after the model was sharded."""

    @abc.abstractmethod
    def inputs(self, position: Position, number: int, batch: Batch) -> tuple[Any, ...]:
        """The arguments of the loss after the images, for this process's part of a batch.

        Random numbers must come from generators seeded by the run's seed, epoch and batch number, so that a resumed
        run draws the same numbers.

        Args:
            position: Position at the beginning of the optimiser step.
            number: Number of the batch in its epoch.
            batch: The images, with their numbers.
        """

    @abc.abstractmethod
    def timing_inputs(self, count: int) -> tuple[Any, ...]:
        """Valid inputs for ``count`` images, used for timing only."""

    @abc.abstractmethod
    def replayed(self, inputs: list[tuple[Any, ...]]) -> dict[str, Any]:
        """The inputs of the batches of a step, as stored in a replay file."""

    @abc.abstractmethod
    def official_args(self) -> dict[str, Any]:
        """The settings under the names of the official trainer's ``args``."""

    def identity(self) -> dict[str, Any]:
        """Values that must not change when the run is resumed, in addition to images, batch size and seed."""
        return {"model": repr(self.model.config)}

    def about(self) -> dict[str, Any]:
        """Metadata of the checkpoint in addition to the model's sizes, as plain values."""
        return {}

    def advice(self, seconds: float) -> tuple[Advice, ...]:
        """Warnings about the plan of a new run, given its estimated duration in seconds."""
        return ()

    def shows(self, epochs: int) -> bool:
        """Whether a preview is due after ``epochs`` finished epochs."""
        return False

    def preview(self, path: Path, epochs: int, *, write: bool) -> Previewed:
        """Draw a preview after ``epochs`` finished epochs; every process must call this, one of them with ``write``."""
        raise NotImplementedError

    def validate(self, done: Position) -> Validated | Probed | None:
        """Evaluate on held-out images at the end of an epoch; None if there are none."""
        return None

    def roll_back(self, position: Position) -> None:  # noqa: B027
        """Forget what was learnt after a position, from which the run goes on in another order."""

    def finish(self, position: Position) -> bool:
        """Finish the task after the last epoch is saved; every process must call this.

        Returns:
            Whether it is finished; False if a run of one process was asked to stop meanwhile.
        """
        return True
