"""Pre-train a masked autoencoder on a folder of images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mae.checkpoints import load_checkpoint, load_weights
from mae.data.sources.scan import ImageScan
from mae.models import create_model
from mae.system.seeding import derive_seed, seeded
from mae.training.config import PretrainConfig
from mae.training.engine import Ended, Start, TaskType, run_task
from mae.training.events import Event, PretrainResult
from mae.training.previews import held_out_images
from mae.training.probes import find_probe_data
from mae.training.tasks.pretrain import PretrainingTask


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


def _make(start: Start[PretrainConfig], found: ImageScan) -> PretrainingTask:
    """Make the pre-training task from settings and images, before anything is written."""
    config = start.config
    held_out = held_out_images(config.val)
    probe_data = find_probe_data(config, held_out, len(found.images), start.ranks, start.device)
    with seeded(derive_seed(config.seed, "weights")):
        model = create_model(config.model_config())
    notes: tuple[str, ...] = ()
    if start.resumption.saved is None and config.init is not None:
        notes = (f"weights from {config.init}", *load_weights(model, load_checkpoint(config.init)))
    return PretrainingTask(config, found, held_out, probe_data, model, (*notes, *probe_data.notes))


PRETRAINING = TaskType(_make)


def _result(ended: Ended, *, psnr_uses_original: bool) -> PretrainResult:
    """The result of a pre-training run."""
    trainer, logged = ended.trainer, ended.folder.log.read(ended.position)
    preview = ended.folder.preview(ended.position.epoch)
    measured: dict[str, Any] = {name: logged.probed.get(name) for name in ("val_loss", "knn", "linear", "rank_me")}
    return PretrainResult(
        **ended.common(logged),
        checkpoint=ended.checkpoint,
        preview=preview if preview.exists() else None,
        zero_prediction_loss=ended.planned.zero_prediction_loss if ended.planned else None,
        psnr=trainer.last_preview.psnr if trainer and trainer.last_preview else logged.psnr,
        psnr_uses_original=psnr_uses_original,
        cache_hits=trainer.epochs[-1].cache_hits if trainer and trainer.epochs else None,
        **measured,
    )
