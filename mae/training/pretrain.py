"""Pre-train a masked autoencoder on a folder of pictures."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from mae.checkpoints import load_checkpoint, load_weights
from mae.data.jpeg import resolve_decoder
from mae.data.picture import check_channels
from mae.data.scan import PictureScan, scan_pictures
from mae.data.source import PictureSource
from mae.device import resolve_device, resolve_precision
from mae.download import obeys_offline
from mae.errors import ConfigError
from mae.mae import MaskedAutoencoder
from mae.models import create_model
from mae.seeding import seeded, stream, stream_seed
from mae.training.compiling import compile_if_it_pays, compiled_loss
from mae.training.config import PretrainConfig
from mae.training.events import Event, PretrainResult, Scanned, Started
from mae.training.failures import explained
from mae.training.feed import Feed
from mae.training.identity import official_args, run_identity
from mae.training.plan import TrainingPlan, check_plan, check_time, make_plan
from mae.training.previews import Previews, held_out_images
from mae.training.ranks import Ranks, ranks_from_environment
from mae.training.run_folder import Position, RunFolder, holds_run
from mae.training.saving import SavedState, Saver, newest_state
from mae.training.step import TrainingStep
from mae.training.tensorboard import also_to_tensorboard
from mae.training.trainer import Trainer, check_unreadable

TIMED_PICTURES = 8


@obeys_offline
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
    result = _run(config, on_event, should_stop, train=True)
    assert isinstance(result, PretrainResult)  # what it is when it trains
    return result


@obeys_offline
def plan_run(config: PretrainConfig, on_event: Callable[[Event], None] = lambda event: None) -> Started:
    """Work out what ``pretrain`` would do with the same settings, up to its first step; nothing is written.

    The data is scanned, the model built and one batch timed, so that what would stop the run stops this too.

    Args:
        config: All settings.
        on_event: Told what happens on the way.

    Raises:
        MaeError: As ``pretrain``.
    """
    planned = _run(config, on_event, lambda: False, train=False)
    assert isinstance(planned, Started)  # what it is when it only plans
    return planned


def _run(
    config: PretrainConfig, on_event: Callable[[Event], None], should_stop: Callable[[], bool], *, train: bool
) -> PretrainResult | Started:
    check_channels(config.in_chans)
    ranks = ranks_from_environment()
    device = resolve_device(config.device, None if ranks.alone else ranks.local_rank)
    precision = resolve_precision(config.precision, device)
    config = dataclasses.replace(
        config,
        device=device.type,
        precision=precision,
        decoder=resolve_decoder(config.decoder),
        out=config.resume or config.out,
    )
    ranks.join(device)
    result = _pretrain(config, device, ranks, on_event if ranks.first else lambda event: None, should_stop, train=train)
    ranks.leave()
    return result


def _pretrain(
    config: PretrainConfig,
    device: torch.device,
    ranks: Ranks,
    on_event: Callable[[Event], None],
    should_stop: Callable[[], bool],
    *,
    train: bool,
) -> PretrainResult | Started:
    resume = config.resume is not None or (config.auto_resume and holds_run(config.out))
    run = RunFolder(config.out, resume=resume, writes=ranks.first and train)
    saved, warnings = newest_state(run) if resume else (None, ())
    position = saved.position if saved else Position()
    ranks.check_same("the saved step", position.step)
    scan = _scan(config, ranks, on_event)
    held_out = held_out_images(config.val)
    with seeded(stream_seed(config.seed, "weights")):
        model = create_model(config.model_config())
    notes = () if saved or config.init is None else _starting_weights(model, config.init)
    try:
        run.make()  # not before all that was named has been found
        if saved:
            run.set_aside_newer(saved.path)
        run.write_environment()
        return _train(
            config, device, ranks, run, saved, warnings, scan, held_out, model, notes, on_event, should_stop,
            train=train,
        )  # fmt: skip
    except (RuntimeError, MemoryError) as error:  # memory runs out first when the model is moved, or a batch timed
        raise explained(error, ranks, recompute=config.recompute) from None
    finally:
        run.release()


def _train(
    config: PretrainConfig,
    device: torch.device,
    ranks: Ranks,
    run: RunFolder,
    saved: SavedState | None,
    warnings: tuple[str, ...],
    scan: PictureScan,
    held_out: PictureSource | None,
    model: MaskedAutoencoder,
    notes: tuple[str, ...],
    on_event: Callable[[Event], None],
    should_stop: Callable[[], bool],
    *,
    train: bool,
) -> PretrainResult | Started:
    position = saved.position if saved else Position()
    if config.tensorboard and run.writes:
        on_event = also_to_tensorboard(run.path / "tensorboard", position.step, on_event)
    run.start_unreadable(scan.unreadable)
    found = len(scan.pictures) + len(scan.unreadable)
    check_unreadable(len(scan.unreadable), found, config.max_unreadable, run)
    ranks.check_same("pictures", (len(scan.pictures), scan.pictures.digest()))
    plan = make_plan(
        config,
        len(scan.pictures),
        scan.pictures.digest(),
        processes=ranks.size,
        batch_size=saved.identity["batch_size"] if saved and saved.identity.get("processes", 1) != ranks.size else None,
    )
    share = ranks.share(plan.batch_size)
    if saved:
        _check_same_run(saved, plan, config)
    notes += _decoder_note(config.decoder)
    if saved and (here := share.stop - share.start) != config.batch_size:
        notes += (f"the run's batches of {plan.batch_size} pictures are {here} in each of {ranks.size} processes here",)
    model.to(device)
    model.recompute_activations(config.recompute)
    loss, compiled, note = _loss(model, config, share.stop - share.start, ranks, saved)
    notes += note
    training_step = TrainingStep(
        model,
        config.precision,
        lr=plan.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        ranks=ranks,
        shard=config.shard,
        loss=loss,
    )
    feed = Feed(config, plan, scan.pictures, ranks, device)
    previews = Previews(model, scan.pictures, held_out, config.mask_ratio)
    if saved:
        saved.restore(training_step)
    else:
        run.write_config(config)
    run.start_log(position)
    saver = Saver(
        run,
        training_step,
        ranks,
        args=official_args(config, plan, ranks),
        identity={**run_identity(config, plan), "processes": ranks.size, "compiled": compiled},
        minutes=config.save_minutes,
        keep_last=config.keep_last,
    )
    trainer = Trainer(
        config, plan, training_step, feed, previews, run, saver, position, ranks, scan.unreadable, on_event, should_stop
    )  # fmt: skip
    started = Started(
        config=config,
        model=model.config,
        plan=plan,
        parameters=sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers())),
        skipped=len(scan.unreadable),
        others=scan.others,
        device=config.device,
        precision=config.precision,
        workers=feed.workers,
        nothing_learnt_loss=previews.zero_prediction_loss,
        step_seconds=_time_batch(training_step, config, share.stop - share.start),
        first_epoch=position.epoch,
        first_step=position.step,
        notes=notes,
        warnings=warnings,
        processes=ranks.size,
    )
    if not saved:
        advice = (*check_plan(config, plan), *check_time(config, plan, config.device, started.seconds))
        started = dataclasses.replace(started, advice=advice)
    if not train:
        return started
    on_event(started)
    ranks.begin_training()
    try:
        return trainer.train()
    except RuntimeError as error:  # a loader process that died is met wherever training happens to be
        raise trainer.explained(error) from None


def _scan(config: PretrainConfig, ranks: Ranks, on_event: Callable[[Event], None]) -> PictureScan:
    """All pictures; the first process of each machine looks, and the others read what it has kept."""
    if ranks.local_rank:
        ranks.wait()
    scan = scan_pictures(config.data, lambda files: on_event(Scanned(files)))
    if not ranks.local_rank:
        ranks.wait()
    return scan


def _starting_weights(model: MaskedAutoencoder, init: Path) -> tuple[str, ...]:
    """Load the weights to start from, and say what a user should know of them."""
    return (f"weights from {init}", *load_weights(model, load_checkpoint(init)))


def _check_same_run(saved: SavedState, plan: TrainingPlan, config: PretrainConfig) -> None:
    """Refuse to go on where the pictures or the recipe would make another run of it."""
    now, before = run_identity(config, plan), saved.identity
    changed = [
        f"{name} was {before[name]} and is {now[name]}" for name in now if before.get(name, now[name]) != now[name]
    ]
    if changed:
        raise ConfigError(
            f"--resume {config.out} would not be the same run: {'; '.join(changed)}",
            hint=f"put it back, or start a new run with --init {saved.path}",
        )


def _loss(
    model: MaskedAutoencoder, config: PretrainConfig, pictures: int, ranks: Ranks, saved: SavedState | None
) -> tuple[nn.Module | None, bool, tuple[str, ...]]:
    """The loss as a module, whether it is compiled, and what to say of that.

    Compiled arithmetic rounds otherwise, so a run that goes on keeps what it began with.
    """
    if not config.compile:
        return None, False, ()
    if saved:
        return (compiled_loss(model), True, ()) if saved.identity.get("compiled") else (None, False, ())

    def run(loss: nn.Module) -> None:
        step = TrainingStep(model, config.precision, lr=0.0, betas=config.betas, weight_decay=0.0, loss=loss)
        _pass(step, config, pictures)

    loss, compiled, note = compile_if_it_pays(model, run)
    if ranks.gather(compiled)[0] == compiled:
        return loss, compiled, (note,)
    return (None, False, (note,)) if compiled else (compiled_loss(model), True, (note,))  # the first one decides


def _decoder_note(decoder: str) -> tuple[str, ...]:
    if decoder != "pillow" or resolve_decoder("auto") != "pillow":
        return ()
    return ("JPEGs are decoded by Pillow; pip install 'maecli[fast]' brings a faster decoder with the same pixels",)


def _time_batch(training_step: TrainingStep, config: PretrainConfig, batch_size: int) -> float:
    """Seconds of one batch's forward and backward pass, from a few pictures of noise; nothing is changed."""
    pictures = min(batch_size, TIMED_PICTURES) if training_step.device.type == "cpu" else batch_size
    _pass(training_step, config, pictures)  # warms up
    return _pass(training_step, config, pictures) * batch_size / pictures


def _pass(training_step: TrainingStep, config: PretrainConfig, pictures: int) -> float:
    """Seconds of a forward and a backward pass over noise."""
    source = stream(config.seed, "timing")
    shape = (pictures, *config.image_size, config.in_chans)  # as the loader lays them out in memory
    images = torch.randint(0, 256, shape, generator=source, dtype=torch.uint8).permute(0, 3, 1, 2)
    noise = torch.rand(pictures, training_step.model.config.num_patches, generator=source)
    start = time.monotonic()
    try:
        training_step.backward(images, config.mask_ratio, noise).item()
        return time.monotonic() - start
    finally:
        training_step.model.zero_grad(set_to_none=True)
