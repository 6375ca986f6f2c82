"""Pre-train a masked autoencoder on a folder of images."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from mae.checkpoints import load_checkpoint, load_weights
from mae.data.sources.scan import ImageScan
from mae.io.download import obeys_offline
from mae.models import create_model
from mae.system.seeding import derive_seed, seeded
from mae.training.config import PretrainConfig
from mae.training.engine import Ended, Start, TaskType, plan_task, run_task
from mae.training.events import Event, PretrainResult, Started
from mae.training.previews import held_out_images
from mae.training.probes import find_probe_data
from mae.training.resuming import Resumption
from mae.training.run_folder import Logged
from mae.training.tasks.pretrain import PretrainingTask


@obeys_offline
def pretrain(
    config: PretrainConfig,
    on_event: Callable[[Event], None] = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> PretrainResult:
    """Train on images, keeping everything in a run folder.

    With ``config.resume`` the run in that folder is resumed, with the losses and weights of an uninterrupted run, bit
    for bit on a CPU.

    Args:
        config: All settings; for a resumed run those of its ``config.toml``.
        on_event: Called with each event, see ``mae.training.events``.
        should_stop: Called between steps; once it returns True, the state is saved and the run ends.

    Raises:
        ConfigError: Settings that cannot be used here.
        DataError: No images, or too many of them unreadable.
        CheckpointError: ``init`` or the run's checkpoint cannot be used.
        TrainingError: Training failed, for instance because memory is full or the loss stays non-finite.
    """
    ended = run_task(PRETRAINING, config, on_event, should_stop)
    return _result(ended, psnr_uses_original=config.norm_pix_loss)


@obeys_offline
def plan_run(config: PretrainConfig, on_event: Callable[[Event], None] = lambda event: None) -> Started:
    """Compute what ``pretrain`` would do with the same settings, up to its first step; nothing is written.

    The data is scanned, the model built and one batch timed, so an error that would stop the run is raised here too.

    Args:
        config: All settings.
        on_event: Called with each event on the way.

    Raises:
        MaeError: As ``pretrain``.
    """
    return plan_task(PRETRAINING, config, on_event)


def _make(start: Start[PretrainConfig], found: ImageScan, resumption: Resumption) -> PretrainingTask:
    """Make the pre-training task from settings and images, before anything is written."""
    config = start.config
    held_out = held_out_images(config.val)
    probe_data = find_probe_data(config, held_out, len(found.images), start.ranks, start.device)
    with seeded(derive_seed(config.seed, "weights")):
        model = create_model(config.model_config())
    notes: tuple[str, ...] = ()
    if resumption.saved is None and config.init is not None:
        notes = (f"weights from {config.init}", *load_weights(model, load_checkpoint(config.init)))
    return PretrainingTask(config, found, held_out, probe_data, model, (*notes, *probe_data.notes))


PRETRAINING = TaskType("pretrain", _make)


def _result(ended: Ended, *, psnr_uses_original: bool) -> PretrainResult:
    """The result of a pre-training run."""
    trainer, planned, position, logged = ended.trainer, ended.planned, ended.position, ended.logged
    train_loss = trainer.last_epoch.train_loss if trainer and trainer.last_epoch else logged.train_loss
    return PretrainResult(
        run=ended.folder.path,
        checkpoint=ended.checkpoint,
        preview=ended.preview,
        epochs=position.epoch,
        steps=position.step,
        train_loss=train_loss if train_loss is not None and math.isfinite(train_loss) else None,
        zero_prediction_loss=planned.zero_prediction_loss if planned else None,
        psnr=trainer.last_preview.psnr if trainer and trainer.last_preview else logged.psnr,
        psnr_uses_original=psnr_uses_original,
        seconds=trainer.seconds if trainer else 0.0,
        stopped=trainer.stopped if trainer else False,
        data_wait=trainer.data_wait if trainer else None,
        first_data_wait=trainer.epochs[0].data_wait if trainer and trainer.epochs else None,
        cache_hits=trainer.last_epoch.cache_hits if trainer and trainer.last_epoch else None,
        was_finished=trainer is None,
        **_measured(logged),
    )


def _measured(logged: Logged) -> dict[str, Any]:
    """The newest values of the held-out loss and the probes, by name."""
    return {name: logged.probed.get(name) for name in ("val_loss", "knn", "linear", "rank_me")}
