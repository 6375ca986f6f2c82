"""Common parts of ``finetune`` and ``linprobe``: making the model, and the result of a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from mae.checkpoints import load_checkpoint
from mae.checkpoints.classifiers import load_encoder
from mae.checkpoints.load import Checkpoint, load_checkpoint_or_default
from mae.checkpoints.run_states import CLASSIFIER
from mae.config import MAEConfig
from mae.data.decoding.image import check_channels
from mae.evaluation.results import Accuracy, percent
from mae.io.notebook import Drawn, Table
from mae.io.text import shown
from mae.models import create_model, variant_config
from mae.models.classifier import ImageClassifier
from mae.system.seeding import derive_seed, seeded
from mae.training.checkpointer import SavedState
from mae.training.classifier_config import ClassifierConfig
from mae.training.engine import Ended
from mae.training.position import Position
from mae.training.run_folder import RunFolder
from mae.training.testing import TestResult, read_test_result


@dataclasses.dataclass(frozen=True)
class ClassifierResult(Drawn):
    """Result of ``finetune`` or ``linprobe``.

    Attributes:
        run: Folder of the run.
        checkpoint: The tested classifier; for a stopped run its newest state.
        epochs, steps: Finished epochs and steps.
        train_loss: Loss of the last finished epoch; None if there is none, or it is non-finite.
        held_out_accuracy: Accuracy of the chosen epoch on the held-out images, from 0 to 1; None without such images.
        test: Test result; None if the run was stopped before the test.
        seconds: Duration of training in seconds.
        stopped: Whether it was stopped before the last epoch.
        data_wait, first_data_wait: As in ``PretrainResult``.
        was_finished: Whether the run was already complete, so that nothing was done.
    """

    run: Path
    checkpoint: Path
    epochs: int
    steps: int
    train_loss: float | None
    held_out_accuracy: float | None
    test: TestResult | None
    seconds: float
    stopped: bool
    data_wait: float | None = None
    first_data_wait: float | None = None
    was_finished: bool = False

    @property
    def top1(self) -> Accuracy | None:
        """Test accuracy."""
        return self.test.top1 if self.test else None

    def _table(self) -> Table:
        test = self.test
        return Table(
            "stopped and saved" if self.stopped else "the classifier is trained",
            [
                ("checkpoint", self.checkpoint),
                ("epochs", self.epochs),
                ("loss", self.train_loss),
                ("held-out accuracy", self.held_out_accuracy),
                ("test accuracy, %", percent(test.top1) if test else None),
                ("test images", test.test_images if test else None),
                ("seconds", self.seconds),
            ],
        )


def make_classifier(
    config: ClassifierConfig, classes: int, saved: SavedState | None, head_std: float, *, fc_norm: bool, probe: bool
) -> tuple[ImageClassifier, str, tuple[str, ...]]:
    """The model with its initial weights, the origin of these weights as text, and messages for the user.

    Raises:
        CheckpointError: The weights cannot be used.
    """
    checkpoint = _checkpoint(config, saved)
    if checkpoint is None:
        sizes: dict[str, Any] = {"patch_size": config.patch_size} if config.patch_size else {}
        sizes |= {"num_heads": config.num_heads} if config.num_heads else {}
        sizes |= {"img_size": config.image_size} if config.image_size else {}
        architecture = _encoder_of(variant_config(str(config.variant), **sizes))
    else:
        architecture = _encoder_of(checkpoint.config)
        if config.image_size is not None:
            architecture = architecture.replace(img_size=config.image_size)
    check_channels(architecture.in_chans)
    with seeded(derive_seed(config.seed, "head")):
        model = ImageClassifier(architecture, classes, pool=config.pool, fc_norm=fc_norm, probe=probe)
        model.reset_head(head_std)
    if saved is None and (checkpoint is None or config.from_scratch):
        _take_fresh_encoder(model, architecture, config.seed)
    notes: tuple[str, ...] = ()
    start = "fresh weights"
    if checkpoint is not None and not config.from_scratch:
        start = f"weights from {shown(checkpoint.named)}"
        if saved is None:
            notes = (*checkpoint.notes, *load_encoder(model, checkpoint))
    if probe:
        model.freeze_encoder()
    return model, start, notes


def _checkpoint(config: ClassifierConfig, saved: SavedState | None) -> Checkpoint | None:
    """The checkpoint that gives the sizes and, unless ``--from-scratch``, the weights; on resuming the saved state."""
    if saved is not None:
        return load_checkpoint(saved.path)
    if config.from_scratch and config.variant is not None:
        return None
    if config.init is None:
        return load_checkpoint_or_default(None)
    return load_checkpoint(config.init, num_heads=config.num_heads)


def _encoder_of(config: MAEConfig) -> MAEConfig:
    """The same config with default decoder sizes, since a classifier has no decoder."""
    usual = MAEConfig()
    names = ("decoder_embed_dim", "decoder_depth", "decoder_num_heads", "norm_pix_loss")
    return config.replace(**{name: getattr(usual, name) for name in names})


def _take_fresh_encoder(model: ImageClassifier, architecture: MAEConfig, seed: int) -> None:
    """Initialise the encoder as ``pretrain`` does with the same seed."""
    with seeded(derive_seed(seed, "weights")):
        fresh = create_model(architecture).state_dict()
    model.load_state_dict({key: value for key, value in fresh.items() if key in model.state_dict()}, strict=False)


def is_complete(folder: RunFolder, position: Position) -> bool:
    """Whether a run whose last epoch is done has its test result."""
    result = read_test_result(folder.path)
    return result is not None and result.epochs == position.epoch and (folder.path / CLASSIFIER).exists()


def result_of(ended: Ended) -> ClassifierResult:
    """The result of a run of ``finetune`` or ``linprobe``."""
    logged = ended.folder.log.read(ended.position)
    common, classifier = ended.common(logged), ended.folder.path / CLASSIFIER
    return ClassifierResult(
        **common,
        checkpoint=classifier if classifier.exists() and not common["stopped"] else ended.checkpoint,
        held_out_accuracy=logged.best[0] if logged.best else None,
        test=None if common["stopped"] else read_test_result(ended.folder.path),
    )
