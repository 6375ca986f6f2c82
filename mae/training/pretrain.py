"""Pre-train a masked autoencoder on a folder of pictures."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable

import torch

from mae.checkpoints import Checkpoint, load_checkpoint, load_weights
from mae.data.augment import Augmentation
from mae.data.jpeg import resolve_decoder
from mae.data.loader import Batches, EpochBatches, PictureDataset, make_loader
from mae.data.picture import check_channels
from mae.data.scan import PictureScan, scan_pictures
from mae.device import resolve_device, resolve_precision
from mae.errors import CheckpointError, ConfigError
from mae.mae import MaskedAutoencoder
from mae.models import create_model
from mae.seeding import seeded, stream, stream_seed
from mae.training.config import PretrainConfig
from mae.training.events import Event, PretrainResult, Scanned, Started
from mae.training.plan import TrainingPlan, make_plan
from mae.training.previews import Previews
from mae.training.run_folder import CHECKPOINT_LAST, Position, RunFolder
from mae.training.step import TrainingStep
from mae.training.tensorboard import also_to_tensorboard
from mae.training.trainer import Trainer, check_unreadable, run_identity

TIMED_PICTURES = 8


def pretrain(
    config: PretrainConfig,
    on_event: Callable[[Event], None] = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> PretrainResult:
    """Train on pictures, keeping everything in a run folder.

    With ``config.resume`` the run in that folder goes on: the same losses and weights, bit for bit on a CPU,
    as if it had never stopped.

    Args:
        config: All settings; for a resumed run those of its ``config.toml``.
        on_event: Told what happens, see ``mae.training.events``.
        should_stop: Asked between steps; once true, the state is saved and the run ends.

    Raises:
        ConfigError: Settings that cannot be used here.
        DataError: No pictures, or too many of them unreadable.
        CheckpointError: ``init`` or the run's checkpoint cannot be used.
        TrainingError: Training cannot go on.
    """
    check_channels(config.in_chans)
    device = resolve_device(config.device)
    precision = resolve_precision(config.precision, device)
    config = dataclasses.replace(
        config,
        device=device.type,
        precision=precision,
        decoder=resolve_decoder(config.decoder),
        out=config.resume or config.out,
    )
    resumed = _load_state(config) if config.resume else None
    position = Position(**resumed.extra["maecli"]["position"]) if resumed else Position()
    run = RunFolder(config.out, resume=resumed is not None)
    scan = scan_pictures(config.data, lambda files: on_event(Scanned(files)))
    run.make()
    if config.tensorboard:
        on_event = also_to_tensorboard(run.path / "tensorboard", position.step, on_event)
    if scan.unreadable:
        run.report_unreadable(list(scan.unreadable))
    found = len(scan.pictures) + len(scan.unreadable)
    check_unreadable(len(scan.unreadable), found, config.max_unreadable, run)
    plan = make_plan(config, len(scan.pictures), scan.pictures.digest())

    with seeded(stream_seed(config.seed, "weights")):
        model = create_model(config.model_config())
    notes = (*_starting_weights(model, config, resumed), *_decoder_note(config.decoder))
    model.to(device)
    training_step = TrainingStep(model, precision, lr=plan.lr, betas=config.betas, weight_decay=config.weight_decay)
    previews = Previews(model, scan.pictures, config.val, config.mask_ratio)
    trainer = Trainer(config, plan, training_step, previews, run, position, scan.unreadable, on_event, should_stop)
    if resumed:
        _check_same_run(resumed, plan, config)
        training_step.optimizer.load_state_dict(resumed.optimizer or {})
        training_step.scaler.load_state_dict(resumed.scaler or {})
    else:
        run.write_config(config)
    run.start_log(position)

    workers = _workers(config.workers, device)
    augmentation = Augmentation(
        config.image_size, config.in_chans, config.crop_scale, config.hflip, config.decoder, config.crop_ratio
    )
    cache_bytes = config.cache * 2**20 // max(1, workers)
    dataset = PictureDataset(scan.pictures, augmentation, config.seed, cache_bytes)
    draws = EpochBatches(
        plan.pictures,
        plan.batch_size,
        config.epochs,
        config.seed,
        position.epoch,
        position.batch,
        groups=scan.pictures.groups,
    )
    batches = Batches(make_loader(dataset, draws, workers=workers, pin_memory=device.type == "cuda"))
    on_event(_started(config, plan, training_step, scan, previews, workers, position, notes))
    try:
        return trainer.train(batches)
    except RuntimeError as error:
        raise batches.explain(error) from None


def _load_state(config: PretrainConfig) -> Checkpoint:
    """The state that a run folder's newest checkpoint holds."""
    path = config.out / CHECKPOINT_LAST
    if not path.exists():
        raise ConfigError(f"--resume {config.out}: there is no {CHECKPOINT_LAST} in it", hint="give a run's folder")
    checkpoint = load_checkpoint(path)
    if "position" not in checkpoint.extra.get("maecli", {}):
        raise CheckpointError(
            f"{path} does not say how far its run had come, so it cannot be resumed exactly",
            hint=f"--init {path} starts a new run from its weights",
        )
    return checkpoint


def _starting_weights(model: MaskedAutoencoder, config: PretrainConfig, resumed: Checkpoint | None) -> tuple[str, ...]:
    """Load the weights to start from, if there are any, and say what a user should know of them."""
    if resumed is not None:
        load_weights(model, resumed)
        return ()
    if config.init is not None:
        return (f"weights from {config.init}", *load_weights(model, load_checkpoint(config.init)))
    return ()


def _check_same_run(resumed: Checkpoint, plan: TrainingPlan, config: PretrainConfig) -> None:
    """Refuse to go on where the pictures or the recipe would make another run of it."""
    saved = resumed.extra["maecli"]["run"]
    now = run_identity(config, plan)
    changed = [
        f"{name} was {saved[name]} and is {now[name]}" for name in now if saved.get(name, now[name]) != now[name]
    ]
    if changed:
        raise ConfigError(
            f"--resume {config.out} would not be the same run: {'; '.join(changed)}",
            hint=f"put it back, or start a new run with --init {config.out / CHECKPOINT_LAST}",
        )


def _decoder_note(decoder: str) -> tuple[str, ...]:
    if decoder != "pillow" or resolve_decoder("auto") != "pillow":
        return ()
    return ("JPEGs are decoded by Pillow; pip install 'maecli[fast]' brings a faster decoder with the same pixels",)


def _workers(wanted: int | None, device: torch.device) -> int:
    """Loader processes: a core for each, but one for the training process, which on a CPU needs them itself."""
    if wanted is not None:
        return wanted
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if device.type == "cpu" else max(1, min(16, cores - 1))


def _started(
    config: PretrainConfig,
    plan: TrainingPlan,
    training_step: TrainingStep,
    scan: PictureScan,
    previews: Previews,
    workers: int,
    position: Position,
    notes: tuple[str, ...],
) -> Started:
    model = training_step.model
    return Started(
        config=config,
        model=model.config,
        plan=plan,
        parameters=sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers())),
        skipped=len(scan.unreadable),
        others=scan.others,
        device=config.device,
        precision=config.precision,
        workers=workers,
        nothing_learnt_loss=previews.nothing_learnt_loss(),
        step_seconds=_time_batch(training_step, config, plan.batch_size),
        first_epoch=position.epoch,
        first_step=position.step,
        notes=notes,
    )


def _time_batch(training_step: TrainingStep, config: PretrainConfig, batch_size: int) -> float:
    """Seconds of one batch's forward and backward pass, from a few pictures of noise; nothing is changed."""
    model, device = training_step.model, training_step.device
    pictures = min(batch_size, TIMED_PICTURES) if device.type == "cpu" else batch_size
    source = stream(config.seed, "timing")
    images = torch.randint(0, 256, (pictures, config.in_chans, *config.image_size), generator=source, dtype=torch.uint8)
    noise = torch.rand(pictures, model.config.num_patches, generator=source)
    seconds = 0.0
    for _ in range(2):  # the first one warms up
        start = time.monotonic()
        training_step.backward(images, config.mask_ratio, noise).item()
        seconds = time.monotonic() - start
        model.zero_grad(set_to_none=True)
    return seconds * batch_size / pictures
