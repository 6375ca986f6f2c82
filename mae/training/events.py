"""Events and results of a training run. Standard library only."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mae.config import MAEConfig
from mae.io.notebook import Drawn, Table, html_image
from mae.training.classifier_config import RunConfig
from mae.training.plan import Advice, TrainingPlan

LEARNT_SHARE = 0.9  # of the loss of predicting zero; a run that learns is below it after about a hundred steps


@dataclasses.dataclass(frozen=True)
class Scanned:
    """The images are being scanned; ``files`` have been scanned so far."""

    files: int


@dataclasses.dataclass(frozen=True)
class Classification:
    """Data and model of a classification run, as shown in its plan.

    Attributes:
        command: "finetune" or "linprobe".
        classes: Names of the classes.
        held_out, test_images: Number of held-out images that choose the epoch, and of test images.
        start: Origin of the initial weights, as text.
        trained: Number of trained parameters.
        pool: Input of the head: "mean" of the patch tokens, or "cls", the class token.
        augmentation: Augmentation of the training images, as text.
    """

    command: str
    classes: tuple[str, ...]
    held_out: int
    test_images: int
    start: str
    trained: int
    pool: str
    augmentation: str


@dataclasses.dataclass(frozen=True)
class ProbePlan:
    """What is measured during training, and how long it takes.

    Attributes:
        val_images: Number of held-out images whose loss is measured every epoch; 0 without ``--val``.
        train_images, test_images, classes: Number of training images, test images and classes of the probes; 0
            without ``--probe``.
        every: Epochs between two probes.
        val_seconds, probe_seconds: Measured seconds of one held-out evaluation and of one probe; 0 if not done.
    """

    val_images: int
    train_images: int
    test_images: int
    classes: int
    every: int
    val_seconds: float
    probe_seconds: float

    def due(self, epochs: int, last: int) -> bool:
        """Whether the encoder is probed after ``epochs`` of ``last`` epochs."""
        return self.classes > 0 and (epochs % self.every == 0 or epochs == last)

    def seconds(self, first: int, last: int) -> float:
        """Total seconds of all measurements from epoch ``first`` to epoch ``last``."""
        probes = sum(self.due(epochs, last) for epochs in range(first + 1, last + 1))
        return (last - first) * self.val_seconds + probes * self.probe_seconds


@dataclasses.dataclass(frozen=True)
class Probed:
    """A measurement during training; values that were not due are None.

    Attributes:
        epochs: Epochs since the start of the run.
        step: Finished optimiser steps.
        val_loss: Loss of held-out images under fixed masks.
        knn, linear: Accuracy on the test part of ``--probe``, from 0 to 1: 20 nearest neighbours (10 of few images),
            and a linear probe, on the mean of the patch tokens after the final norm.
        rank_me: RankMe of the same features of the training part.
        val_seconds, probe_seconds: Duration in seconds.
    """

    epochs: float
    step: int
    val_loss: float | None = None
    knn: float | None = None
    linear: float | None = None
    rank_me: float | None = None
    val_seconds: float | None = None
    probe_seconds: float | None = None


@dataclasses.dataclass(frozen=True)
class Started:
    """A run is about to start training.

    Attributes:
        parameters: Number of all values of the model, position embeddings included.
        zero_prediction_loss: Loss of predicting zero on the preview images, or of guessing classes.
        step_seconds: Measured time of one batch's forward and backward pass, without loading.
        first_epoch, first_step: Position of a resumed run.
        warnings: Messages about newer states that could not be read and were skipped, and about the images' source.
        processes: Number of processes of the run.
        advice: Settings of a new run that are likely to give a poor result, and what to use instead.
        seconds_left: Estimate for a resumed run from the throughput in its log; None if unknown.
        changes: Changed settings of a resumed run, as text.
        classification: Only for a classification run.
        probes: What is measured during training; None if nothing is.
        probed: Measurement before the first step; None if a resumed run's log already has the durations.
        precision_reason: Why ``--precision auto`` chose this precision; None if it was given or resumed.
    """

    config: RunConfig
    model: MAEConfig
    plan: TrainingPlan
    parameters: int
    skipped: int
    others: int
    device: str
    precision: str
    workers: int
    zero_prediction_loss: float
    step_seconds: float
    first_epoch: int
    first_step: int
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    processes: int = 1
    advice: tuple[Advice, ...] = ()
    seconds_left: float | None = None
    changes: tuple[str, ...] = ()
    classification: Classification | None = None
    probes: ProbePlan | None = None
    probed: Probed | None = None
    precision_reason: str | None = None

    @property
    def seconds(self) -> float:
        """Estimated seconds left: from the throughput in the log, else from the timed batch without loading."""
        if self.seconds_left is not None:
            return self.seconds_left + self.probe_seconds
        return self.plan.batches_left(self.first_step) * self.step_seconds + self.probe_seconds

    @property
    def probe_seconds(self) -> float:
        """Seconds of ``seconds`` that are spent on measurements."""
        return self.probes.seconds(self.first_epoch, self.config.epochs) if self.probes else 0.0


@dataclasses.dataclass(frozen=True)
class Stepped:
    """One optimiser step is done.

    Attributes:
        epoch: Epochs since the start of the run, with a fraction.
        step: Finished optimiser steps.
        loss: Mean over the step's batches.
        grad_norm: The gradient's Euclidean norm over all parameters.
        images_per_second: Throughput over the last seconds.
        data_wait: Fraction of the time spent waiting for images.
    """

    epoch: float
    step: int
    loss: float
    grad_norm: float
    lr: float
    images_per_second: float
    data_wait: float


@dataclasses.dataclass(frozen=True)
class StepSkipped:
    """A step was skipped because its loss or gradient is non-finite.

    Attributes:
        in_a_row: Consecutive skipped steps up to this one.
    """

    epoch: float
    step: int
    loss: float
    grad_norm: float
    lr: float
    in_a_row: int


@dataclasses.dataclass(frozen=True)
class RolledBack:
    """The run went back to a saved state and continues from there with another image order."""

    checkpoint: Path
    step: int
    turn: int


@dataclasses.dataclass(frozen=True)
class EpochDone:
    """An epoch is finished; ``epoch`` counts from 0, as in the official log.

    Attributes:
        cache_hits: Fraction of the images of one process that came from ``--cache``; None without it.
    """

    epoch: int
    train_loss: float
    train_lr: float
    seconds: float
    images_per_second: float
    data_wait: float
    cache_hits: float | None = None


@dataclasses.dataclass(frozen=True)
class Previewed:
    """An image of reconstructions was written."""

    path: Path
    psnr: float
    psnr_uses_original: bool


@dataclasses.dataclass(frozen=True)
class Validated:
    """Validation at the end of an epoch; ``epoch`` counts from 0.

    Attributes:
        val_loss: Mean cross-entropy.
        val_accuracy: Fraction of the images that are classified correctly.
        best: Whether it is the best epoch so far.
    """

    epoch: int
    val_loss: float
    val_accuracy: float
    best: bool


@dataclasses.dataclass(frozen=True)
class Evaluating:
    """A classifier is being evaluated, after a batch.

    Attributes:
        part: "held-out" or "test".
        images: Evaluated so far, by this process.
        total: Number of images that this process evaluates.
    """

    part: str
    images: int
    total: int


@dataclasses.dataclass(frozen=True)
class FinalTest:
    """The test images were evaluated; ``epoch`` is that of the weights, from 0.

    Attributes:
        test_accuracy, test_low, test_high: Fraction of the test images classified correctly, and the bounds of its 95 %
            confidence interval.
    """

    epoch: int
    test_accuracy: float
    test_low: float
    test_high: float
    test_images: int


@dataclasses.dataclass(frozen=True)
class ImageUnreadable:
    """An image could not be decoded and was replaced by another."""

    path: Path
    reason: str


@dataclasses.dataclass(frozen=True)
class TrackerFailed:
    """A tracker of ``--log-to`` failed and gets no more entries; training continues, and ``log.jsonl`` is complete."""

    tracker: str
    reason: str


Event = (
    Scanned
    | Started
    | Stepped
    | StepSkipped
    | RolledBack
    | EpochDone
    | Validated
    | Evaluating
    | FinalTest
    | Probed
    | Previewed
    | ImageUnreadable
    | TrackerFailed
)


@dataclasses.dataclass(frozen=True)
class PretrainResult(Drawn):
    """Result of pre-training; a notebook shows it with the newest preview.

    Attributes:
        train_loss: Loss of the last finished epoch; None if there is none, or it is non-finite.
        stopped: Whether it was stopped before the last epoch.
        zero_prediction_loss: Loss of predicting zero on this data; a final loss near it means that training failed.
            None if nothing was done.
        was_finished: Whether the run was already complete, so that nothing was done.
        psnr: Mean PSNR on the masked patches of the last preview, dB; None without previews.
        psnr_uses_original: Whether patches were un-normalised with mean and std of the original patches, which raises
            the PSNR.
        data_wait, first_data_wait: Fraction of the time spent waiting for images, over the epochs that this process
            finished and in the first of them; None if it finished none.
        cache_hits: ``EpochDone.cache_hits`` of the last epoch.
        val_loss, knn, linear, rank_me: Newest values of ``Probed``; None if not measured.
    """

    run: Path
    checkpoint: Path
    preview: Path | None
    epochs: int
    steps: int
    train_loss: float | None
    zero_prediction_loss: float | None
    psnr: float | None
    psnr_uses_original: bool
    seconds: float
    stopped: bool
    data_wait: float | None = None
    first_data_wait: float | None = None
    cache_hits: float | None = None
    was_finished: bool = False
    val_loss: float | None = None
    knn: float | None = None
    linear: float | None = None
    rank_me: float | None = None

    @property
    def learnt(self) -> bool | None:
        """Whether the loss is below 90 % of the loss of predicting zero; None if either loss is unknown."""
        if self.train_loss is None or self.zero_prediction_loss is None:
            return None
        return self.train_loss < LEARNT_SHARE * self.zero_prediction_loss

    def _table(self) -> Table:
        return Table(
            "stopped and saved" if self.stopped else "pre-training is done",
            [
                ("checkpoint", self.checkpoint),
                ("epochs", self.epochs),
                ("steps", self.steps),
                ("loss", self.train_loss),
                ("loss of predicting zero", self.zero_prediction_loss),
                ("PSNR of the previews, dB", self.psnr),
                ("loss of held-out images", self.val_loss),
                ("k-NN accuracy", self.knn),
                ("linear accuracy", self.linear),
                ("RankMe", self.rank_me),
                ("seconds", self.seconds),
            ],
        )

    def _repr_html_(self) -> str:
        return super()._repr_html_() + html_image(self.preview, "reconstructions")
