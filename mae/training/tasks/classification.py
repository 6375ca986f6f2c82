"""Classification tasks: what fine-tuning and linear probing have in common."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mae.checkpoints.classifiers import about_classes, build_classifier, folded
from mae.checkpoints.load import Checkpoint, load_checkpoint
from mae.checkpoints.run_states import CLASSIFIER
from mae.checkpoints.save import checkpoint_document, save
from mae.data.augment import Augmentation
from mae.data.eval_loader import EvalDataset, eval_batches, in_batches
from mae.data.eval_transform import EvalTransform
from mae.data.loader import Batch, loader_workers
from mae.data.sources.base import Subset
from mae.data.sources.scan import ImageScan
from mae.data.transforms import normalise
from mae.errors import CheckpointError, TrainingError
from mae.evaluation.extract import check_unreadable
from mae.evaluation.metrics import accuracy, by_class
from mae.evaluation.results import Accuracy
from mae.io.text import shown
from mae.models.classifier import ImageClassifier
from mae.models.registry import ENCODER_SIZES
from mae.system.device import autocast
from mae.system.seeding import stream
from mae.training.classifier_config import ClassifierConfig
from mae.training.events import Classification, Evaluating, FinalTest, Validated
from mae.training.identity import official_training_args
from mae.training.labelled import LabelledImages, Part
from mae.training.parallel import is_sharded, whole
from mae.training.position import Position
from mae.training.run import Run
from mae.training.tasks.base import Task
from mae.training.testing import TestResult, write_test_result

TOP = 5


class InterruptedTestError(RuntimeError):
    """The run was asked to stop during an evaluation."""


class Predictions(NamedTuple):
    """Predictions of a classifier for some images.

    Attributes:
        truth: (N,) true classes.
        predicted: (N,) classes with the highest logit.
        place: (N,) number of classes ranked before the true one; ties are ranked by class number, and the true
            class is last if a logit is non-finite.
        loss: Mean cross-entropy.
        unreadable: (name, reason) of images that could not be read.
    """

    truth: NDArray[np.int64]
    predicted: NDArray[np.int64]
    place: NDArray[np.int64]
    loss: float
    unreadable: tuple[tuple[str, str], ...]


class ClassificationTask(Task):
    """Base class of tasks that classify images.

    Args:
        config: Settings of the run.
        scan: All images that were found.
        labelled: The same images with labels, divided into training, held-out and test images.
        model: The model with its initial weights.
        start: Origin of these weights, as text.
        notes: Messages for the user.
    """

    def __init__(
        self,
        config: Any,
        scan: ImageScan,
        labelled: LabelledImages,
        model: ImageClassifier,
        start: str,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.config: ClassifierConfig = config
        self.labelled = labelled
        self.unreadable, self.others = scan.unreadable, scan.others
        self.images = Subset(labelled.source, labelled.train.images)
        self.labels = torch.from_numpy(labelled.train.labels)
        self.model = model
        self.notes = (*labelled.notes, *notes)
        self.augmentation = self.make_augmentation()
        self.best: tuple[float, float] | None = None
        self.classification = Classification(
            command=self.config.command,
            classes=labelled.classes,
            held_out=len(labelled.held_out),
            test_images=len(labelled.test),
            start=start,
            trained=sum(one.numel() for one in model.parameters() if one.requires_grad),
            pool=model.pool,
            augmentation=str(self.augmentation),
        )

    @abc.abstractmethod
    def make_augmentation(self) -> Augmentation:
        """The augmentation of the training images."""

    def labels_of(self, batch: Batch) -> Tensor:
        """(B,): labels of the batch's images, some of which may replace unreadable ones."""
        return self.labels[list(batch.indices)]

    @property
    def zero_prediction_loss(self) -> float:
        """Cross-entropy of equal class probabilities."""
        return math.log(len(self.labelled.classes))

    def begin(self, run: Run, position: Position) -> None:
        """Store the run, and read the best epoch so far from its log.

        A killed run may have written the weights of an epoch that its newest state does not know. With the same
        settings that epoch is repeated bit for bit. With another number of epochs it is not: its weights go, and the
        choice of the best epoch begins again, because those of the best epoch before are overwritten.
        """
        self.run = run
        if not run.folder.resume:
            sizes = {name: getattr(self.model.config, name) for name in ENCODER_SIZES}
            run.folder.log.add({"step": 0, "model": sizes})
        if self._read_best(position, lambda kept: kept.args.get("epochs") != self.config.epochs):
            self.notes += (
                f"{CLASSIFIER} was written by an epoch that is not repeated with other --epochs, so it is removed, and "
                "the choice of the best epoch begins again",
            )

    def roll_back(self, position: Position) -> None:
        """Read the best epoch before the position from the log; in another order no later epoch is repeated."""
        self._read_best(position, lambda kept: True)

    def _read_best(self, position: Position, is_other: Callable[[Checkpoint], bool]) -> bool:
        """Read the best epoch so far from the log.

        Returns:
            Whether the weights were removed because they are of a later epoch, and of another training.
        """
        folder, path = self.run.folder, self.run.folder.path / CLASSIFIER
        is_later = path.exists() and self._is_later(path, position, is_other)
        # The first process decides: every process must keep the weights of the same epochs.
        self.best, is_later = self.run.ranks.gather((folder.log.read(position).best, is_later))[0]
        if not is_later:
            return False
        self.best = None
        if folder.writes:
            _remove(path)
            epochs = self.run.epochs_at(position)
            folder.log.add({"epoch": epochs, "step": position.step, "changed": {"classifier": ["saved", "removed"]}})
        return True

    def _is_later(self, path: Path, position: Position, is_other: Callable[[Checkpoint], bool]) -> bool:
        try:
            kept = load_checkpoint(path)
        except CheckpointError:
            return False  # ``finish`` names it
        return (kept.epoch or 0) >= position.epoch and is_other(kept)

    def replayed(self, inputs: list[tuple[Any, ...]]) -> dict[str, Any]:
        """The inputs of each batch, and the name of the task."""
        return {"task": self.config.command, "inputs": [list(one) for one in inputs]}

    def identity(self) -> dict[str, Any]:
        """The model and the names of the classes."""
        return {**super().identity(), "classes": list(self.labelled.classes)}

    def about(self) -> dict[str, Any]:
        """Names of the classes, and the pooling before the head."""
        return about_classes(self.labelled.classes, self.model.pool)

    def official_args(self) -> dict[str, Any]:
        """The settings under the names of the official scripts' ``args``."""
        config, size = self.config, self.model.config.img_size
        return {
            "nb_classes": len(self.labelled.classes),
            "input_size": size[0] if size[0] == size[1] else list(size),
            "global_pool": self.model.pool == "mean",
            "finetune": "" if config.from_scratch else str(config.init or ""),
            **official_training_args(config, self.run.plan, self.run.ranks),
        }

    def validate(self, done: Position) -> Validated | None:
        """Evaluate on the held-out images, and save the weights if this epoch is the best so far."""
        if not len(self.labelled.held_out):
            return None
        answers = self.predict(self.model, self.labelled.held_out, "held-out")
        right = float((answers.place == 0).mean()) if len(answers.place) else 0.0
        score = (right, -answers.loss)
        best = math.isfinite(answers.loss) and (self.best is None or score > self.best)
        if best:
            self.best = score
            self.keep(done)
        return Validated(done.epoch, answers.loss, right, best)

    def keep(self, done: Position) -> None:
        """Write the weights as the run's classifier; all processes must call this."""
        writes, state = self.run.folder.writes, {}
        for key, tensor in self.model.state_dict().items():
            full = whole(tensor)
            if writes:
                state[key] = full.detach().cpu()
        if not writes:
            return
        document = checkpoint_document(
            folded(state),
            self.model.config,
            epoch=done.epoch,
            args=self.official_args(),
            extra={"maecli": self.about()},
        )
        try:
            save(self.run.folder.path / CLASSIFIER, document)
        except CheckpointError as error:
            raise TrainingError(error.message) from None

    def finish(self, position: Position) -> bool:
        """Evaluate the weights of the chosen epoch on the test images, which are used only here.

        A run of one process that is asked to stop during the test repeats the test on resuming.
        """
        run, labelled = self.run, self.labelled
        path = run.folder.path / CLASSIFIER
        if self.config.select == "last":
            self.keep(Position(epoch=position.epoch - 1))
        run.ranks.wait()
        if not path.exists():
            raise TrainingError(
                f"{path} is missing: no epoch had a finite loss on the held-out images, or the file was removed",
                hint="lower --lr, or start again with another --out",
            )
        checkpoint = load_checkpoint(path)
        model = build_classifier(checkpoint)[0].to(run.device)
        try:
            answers = self.predict(model, labelled.test, "test", may_stop=run.ranks.alone)
        except RuntimeError:
            if run.ranks.alone and run.should_stop():  # Ctrl-C may have ended loader processes first
                return False
            raise
        if not math.isfinite(answers.loss):
            raise TrainingError(
                f"{path}: its predictions for the test images are non-finite, so training has diverged",
                hint="lower --lr, or start again with another --out",
            )
        chosen = (checkpoint.epoch or 0) + 1
        result = test_result(answers, labelled.classes, position.epoch, chosen)
        if run.folder.writes:
            write_test_result(run.folder.path, result)
        top1 = result.top1
        tested = FinalTest(chosen - 1, top1.value, top1.low, top1.high, len(answers.truth))
        run.folder.log.add({**dataclasses.asdict(tested), "step": position.step})
        run.on_event(tested)
        run.ranks.wait()
        return True

    @torch.no_grad()
    def predict(self, model: ImageClassifier, part: Part, name: str, *, may_stop: bool = False) -> Predictions:
        """Predictions for the images of a part; each process evaluates every ``ranks.size``-th image.

        Raises:
            InterruptedTestError: With ``may_stop``, if the run was asked to stop.
        """
        ranks, config = self.run.ranks, self.config
        self._share_statistics(model)
        training = model.training
        model.eval()
        own = slice(ranks.rank, None, ranks.size)
        truth = dict(zip(part.images[own].tolist(), part.labels[own].tolist(), strict=True))
        found: list[tuple[int, int, int, float]] = []
        unreadable: list[tuple[str, str]] = []
        for indices, logits, skipped in self._logits(model, part, own):
            if may_stop and self.run.should_stop():
                raise InterruptedTestError
            labels = torch.tensor([truth[index] for index in indices], dtype=torch.int64, device=logits.device)
            place = places(logits, labels)
            losses = F.cross_entropy(logits, labels, reduction="none")
            columns = (labels.tolist(), logits.argmax(dim=1).tolist(), place.tolist(), losses.tolist())
            found += zip(*columns, strict=True)
            unreadable += skipped
            self.run.on_event(Evaluating(name, len(found) + len(unreadable), len(truth)))
        model.train(training)
        gathered = ranks.gather((found, unreadable))
        answers = [row for rows, _ in gathered for row in rows]
        broken = tuple(one for _, names in gathered for one in names)
        check_unreadable(broken, len(part), config.max_unreadable)
        counts = np.array([row[:3] for row in answers], dtype=np.int64).reshape(-1, 3)
        loss = math.fsum(row[3] for row in answers) / max(1, len(answers))
        return Predictions(counts[:, 0], counts[:, 1], counts[:, 2], loss, broken)

    def _logits(
        self, model: ImageClassifier, part: Part, own: slice
    ) -> Iterator[tuple[tuple[int, ...], Tensor, list[tuple[str, str]]]]:
        """For each batch of this process: numbers of the images, float32 logits, (name, reason) of unreadable images.

        A sharded model needs all processes in each forward pass, so a process that has no image left evaluates a
        dummy image and discards the result.
        """
        sizes, source, sharded = model.config, self.labelled.source, is_sharded(model)
        indices: list[int] = part.images[own].tolist()
        dataset = EvalDataset(source, EvalTransform(sizes.img_size, self.config.crop_pct), sizes.in_chans)
        size = max(1, self.run.plan.global_batch_size // self.run.ranks.size)
        batches = in_batches(indices, size)
        device = self.run.device
        workers, pin_memory = loader_workers(self.config.workers, device), device.type == "cuda"
        empty = torch.zeros(1, sizes.in_chans, *sizes.img_size, dtype=torch.uint8, device=device)

        def logits_of(images: Tensor) -> Tensor:
            with autocast(device, self.config.precision):
                logits: Tensor = model(normalise(images.to(device, non_blocking=True)))
            return logits.float()

        for batch in eval_batches(dataset, batches, workers=workers, pin_memory=pin_memory):
            broken = [(str(source.name(index)), reason) for index, reason in batch.unreadable]
            if batch.indices:
                yield batch.indices, logits_of(batch.images), broken
                continue
            if sharded:
                logits_of(empty)
            yield (), torch.empty(0, len(self.labelled.classes), device=device), broken
        most = -(-len(part) // self.run.ranks.size)  # images of the first process, which has the most
        for _ in range(len(batches), math.ceil(most / size) if sharded else 0):
            logits_of(empty)

    def _share_statistics(self, model: nn.Module) -> None:
        """Copy the batch norm's running statistics of the first process to all processes."""
        if self.run.ranks.alone:
            return
        first = self.run.ranks.gather([buffer.cpu() for buffer in model.buffers()])[0]
        for buffer, value in zip(model.buffers(), first, strict=True):
            buffer.copy_(value)

    def random(self, purpose: str, position: Position, number: int) -> torch.Generator:
        """A generator seeded by the run's seed, a purpose, the epoch and the number of the batch."""
        return stream(self.config.seed, purpose, position.epoch, number)

    def own_share(self, whole: Tensor | None) -> Tensor | None:
        """This process's part of a tensor that was drawn for the global batch."""
        return None if whole is None else whole[self.run.ranks.share(self.run.plan.global_batch_size)]


def _remove(path: Path) -> None:
    try:
        path.unlink()
    except OSError as error:
        raise TrainingError(
            f"{shown(path)} must be removed and cannot be: {error.strerror or error}", hint="make its folder writable"
        ) from None


def places(logits: Tensor, labels: Tensor) -> Tensor:
    """Number of classes ranked before the true one: logits (N, C), labels (N,) -> (N,)."""
    own = logits.gather(1, labels[:, None])
    earlier = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    before = ((logits > own) | ((logits == own) & earlier)).sum(dim=1)
    return before.where(logits.isfinite().all(dim=1), torch.full_like(before, logits.shape[1]))


def test_result(answers: Predictions, classes: Sequence[str], epochs: int, chosen: int) -> TestResult:
    """Compute the test metrics from the predictions."""
    per_class, confusion = by_class(answers.predicted, answers.truth, classes)
    tested = {one.name for one in per_class}
    top5: Accuracy | None = None
    if len(classes) > TOP:
        within = (answers.place < TOP).astype(np.int64)
        top5 = accuracy(within, np.ones_like(within))
    return TestResult(
        epochs=epochs,
        chosen_epoch=chosen,
        test_images=len(answers.truth),
        top1=accuracy((answers.place > 0).astype(np.int64), np.zeros_like(answers.place)),
        top5=top5,
        loss=answers.loss,
        mean_class_accuracy=sum(one.test.value for one in per_class) / len(per_class),
        classes=per_class,
        confusion=confusion,
        skipped=answers.unreadable,
        untested=tuple(name for name in classes if name not in tested),
    )


class ClassificationLoss(nn.Module):
    """Cross-entropy as a module's forward pass, as DDP and torch.compile need it."""

    def __init__(self, model: ImageClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, imgs: Tensor, labels: Tensor) -> Tensor:
        """Images (B, C, H, W) and labels (B,) -> mean cross-entropy, scalar."""
        return F.cross_entropy(self.model(imgs).float(), labels)
