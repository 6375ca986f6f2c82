"""Fine-tune an encoder with a classification head on labelled images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from mae.data.classifier_augment import check_policy, resolve_augmenter
from mae.data.sources.scan import ImageScan
from mae.training.classifier_config import FinetuneConfig
from mae.training.classifying import ClassifierResult, is_complete, make_classifier, result_of
from mae.training.engine import Start, TaskType, run_task
from mae.training.events import Event
from mae.training.labelled import divide
from mae.training.tasks.finetune import HEAD_STD, FinetuneTask


def finetune(
    config: FinetuneConfig,
    on_event: Callable[[Event], None] = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> ClassifierResult:
    """Fine-tune an encoder with a classification head, and test the best epoch once.

    With ``config.resume`` the run in that folder is resumed, with the losses and weights of an uninterrupted run, bit
    for bit on a CPU.

    Args:
        config: All settings; for a resumed run those of its ``config.toml``.
        on_event: Called with each event, see ``mae.training.events``.
        should_stop: Called between steps; once it returns True, the state is saved and the run ends.

    Raises:
        ConfigError: Settings that cannot be used here.
        DataError: No labelled images, or too many of them unreadable.
        CheckpointError: ``init`` or the run's checkpoint cannot be used.
        TrainingError: Training failed, for instance because memory is full or the loss stays non-finite.
    """
    return result_of(run_task(FINETUNING, config, on_event, should_stop))


def _make(start: Start[FinetuneConfig], found: ImageScan) -> FinetuneTask:
    """Make the fine-tuning task from settings and images, before anything is written."""
    config = start.config
    labelled = divide(found, config)
    model, origin, notes = make_classifier(
        config, len(labelled.classes), start.resumption.saved, HEAD_STD, fc_norm=config.pool == "mean", probe=False
    )
    check_policy(config.aa, model.config.in_chans)
    return FinetuneTask(config, found, labelled, model, origin, notes)


def _settle(config: FinetuneConfig) -> FinetuneConfig:
    return dataclasses.replace(config, augmenter=resolve_augmenter(config.augmenter))


FINETUNING = TaskType(_make, is_complete, _settle)
