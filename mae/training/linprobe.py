"""Train a linear classifier on the features of a frozen encoder."""

from __future__ import annotations

from collections.abc import Callable

from mae.data.sources.scan import ImageScan
from mae.training.classifier_config import LinprobeConfig
from mae.training.classifying import ClassifierResult, is_complete, make_classifier, result_of
from mae.training.engine import Start, TaskType, run_task
from mae.training.events import Event
from mae.training.labelled import divide
from mae.training.tasks.linprobe import HEAD_STD, LinprobeTask


def linprobe(
    config: LinprobeConfig,
    on_event: Callable[[Event], None] = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> ClassifierResult:
    """Train a linear classifier on the features of a frozen encoder, and test the best epoch once.

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
    return result_of(run_task(PROBING, config, on_event, should_stop))


def _make(start: Start[LinprobeConfig], found: ImageScan) -> LinprobeTask:
    """Make the linear probing task from settings and images, before anything is written."""
    config = start.config
    labelled = divide(found, config)
    model, origin, notes = make_classifier(
        config, len(labelled.classes), start.resumption.saved, HEAD_STD, fc_norm=False, probe=True
    )
    return LinprobeTask(config, found, labelled, model, origin, notes)


PROBING = TaskType(_make, is_complete)
