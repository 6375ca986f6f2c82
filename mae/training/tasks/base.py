"""What a training run asks of a task; the loop knows nothing else of what is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from mae.data.augment import Augmentation
from mae.data.loader import Batch
from mae.data.sources.base import ImageSource
from mae.data.sources.scan import Unreadable
from mae.training.events import Classification, Previewed, Probed, Validated
from mae.training.plan import Advice
from mae.training.probes import Probes
from mae.training.run import Run
from mae.training.run_folder import Position


class Task(Protocol):
    """What differs between pre-training and training for something else.

    The loop hands each batch of images to ``TrainingStep`` together with the task's ``inputs``; resuming, saving,
    ranks, the log and the report are the same for all tasks.

    Attributes:
        model: What is trained; its ``config`` tells the sizes.
        images: What it learns from.
        unreadable, others: What the scan could not read, and how many files are no images.
        augmentation: What is done to each image.
        notes: What a user should know before the first step.
        classification: What a plan tells of classes; None where there are none.
        probes: What measures the encoder beside the training; None where nothing does, or before the run has begun.
    """

    model: Any
    images: ImageSource
    unreadable: Sequence[Unreadable]
    others: int
    augmentation: Augmentation
    notes: tuple[str, ...]
    classification: Classification | None
    probes: Probes | None

    @property
    def zero_prediction_loss(self) -> float:
        """The loss of a model that has learnt nothing; known once the run has begun."""
        ...

    @property
    def clip_grad(self) -> float | None:
        """The norm to which a larger gradient is scaled down; None for never."""
        ...

    def begin(self, run: Run, position: Position) -> None:
        """Take up the run at a position, as soon as its plan is made and the model is on its device."""
        ...

    def loss(self) -> nn.Module:
        """The loss as a module: its forward pass takes normalised images and the ``inputs``."""
        ...

    def make_optimizer(self, lr: float) -> torch.optim.Optimizer:
        """The optimiser over the model's parameters, as they are divided over the processes."""
        ...

    def inputs(self, position: Position, number: int, batch: Batch) -> tuple[Any, ...]:
        """What the loss takes beside the images of a batch, for this process's part of it.

        Anything random comes from generators seeded by the run's seed and the place (epoch and batch), so that a
        resumed run draws the same.

        Args:
            position: Where its step begins.
            number: The batch's, in its epoch.
            batch: Its images.
        """
        ...

    def timing_inputs(self, count: int) -> tuple[Any, ...]:
        """Such inputs for so many images of noise, with which a step is timed."""
        ...

    def replayed(self, inputs: list[tuple[Any, ...]]) -> dict[str, Any]:
        """The inputs of a step's batches as a replay file holds them."""
        ...

    def identity(self) -> dict[str, Any]:
        """What may not change between the parts of a run, beside its images, batches and seed."""
        ...

    def about(self) -> dict[str, Any]:
        """What a checkpoint tells of the model beside its sizes; plain values."""
        ...

    def official_args(self) -> dict[str, Any]:
        """The settings under the names of the official trainer's ``args``."""
        ...

    def advice(self, seconds: float) -> tuple[Advice, ...]:
        """What in the plan of a new run is unlikely to end well, given how long it would take."""
        ...

    def shows(self, epochs: int) -> bool:
        """Whether a preview is due after so many epochs."""
        ...

    def preview(self, path: Path, epochs: int, *, write: bool) -> Previewed:
        """Draw what the model makes of a few images after so many epochs; every process takes part, one writes."""
        ...

    def validate(self, done: Position) -> Validated | Probed | None:
        """What held-out images say at an epoch's end; None where the task holds none out."""
        ...

    def finish(self, position: Position) -> bool:
        """What is left to do when the last epoch is done and saved; every process takes part.

        Returns:
            Whether all of it was done; not where a run of one process was asked to stop.
        """
        ...
