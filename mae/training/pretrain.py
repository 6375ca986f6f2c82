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
from mae.data.remote import url_of
from mae.data.scan import PictureScan, scan_pictures
from mae.data.source import PictureSource
from mae.device import resolve_device, resolve_precision
from mae.download import obeys_offline
from mae.errors import DataError
from mae.files import shown
from mae.mae import MaskedAutoencoder
from mae.models import create_model
from mae.seeding import seeded, stream, stream_seed
from mae.training.compiling import compile_if_it_pays, compiled_loss
from mae.training.config import PretrainConfig
from mae.training.events import Event, PretrainResult, Scanned, Started
from mae.training.failures import explained
from mae.training.feed import Feed
from mae.training.identity import deciding_settings, official_args, run_identity
from mae.training.plan import TrainingPlan, check_plan, check_time, make_plan
from mae.training.previews import Previews, held_out_images
from mae.training.ranks import Ranks, ranks_from_environment
from mae.training.resuming import Resumption, check_same_run, take_up
from mae.training.run_folder import Logged, Position, RunFolder, holds_run
from mae.training.saving import Saver, finished_file, restore
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
    config = dataclasses.replace(config, device=device.type, out=config.resume or config.out)
    resume = config.resume is not None or (config.auto_resume and holds_run(config.out))
    run = RunFolder(config.out, resume=resume, writes=ranks.first)
    recorded = run.read_config() if resume else None
    # What is left to choose stays what it was chosen to be; a JPEG has the same pixels whatever decodes it.
    precision = recorded.precision if recorded and config.precision == "auto" else config.precision
    config = dataclasses.replace(
        config, precision=resolve_precision(precision, device), decoder=resolve_decoder(config.decoder)
    )
    ranks.join(device)
    tell = on_event if ranks.first else _ignore
    result = _pretrain(config, run, recorded, device, ranks, tell, should_stop, train=train)
    ranks.leave()
    return result


def _ignore(event: Event) -> None:
    pass


def _pretrain(
    config: PretrainConfig,
    run: RunFolder,
    recorded: PretrainConfig | None,
    device: torch.device,
    ranks: Ranks,
    on_event: Callable[[Event], None],
    should_stop: Callable[[], bool],
    *,
    train: bool,
) -> PretrainResult | Started:
    resumption = take_up(run, config, recorded, ranks.size) if run.resume else Resumption()
    ranks.check_same("the saved step", resumption.position.step)
    if train and ranks.gather(_is_finished(run, config, resumption))[0]:
        return _finished_before(run, config, resumption.position)
    scan = _scan(config, run, ranks, on_event)
    held_out = held_out_images(config.val)
    with seeded(stream_seed(config.seed, "weights")):
        model = create_model(config.model_config())
    starts_from = config.init if resumption.saved is None else None
    notes = () if starts_from is None else _starting_weights(model, starts_from)
    trainer: Trainer | None = None
    try:
        run.make()  # not before all that was named has been found
        if resumption.saved:
            run.set_aside_newer(resumption.saved.path)
        trainer, started = _prepare(
            config, run, resumption, device, ranks, scan, held_out, model, notes, on_event, should_stop
        )
        if not train:
            return started
        trainer.on_event(started)
        ranks.begin_training()
        return trainer.train()
    except BaseException as error:
        # A start that came to nothing leaves no folder; one that was broken off in its first step can go on.
        if trainer is None or (isinstance(error, Exception) and trainer.position == resumption.position):
            run.abandon()
        if not isinstance(error, RuntimeError | MemoryError):
            raise
        # Memory may run out as soon as the model is moved; a loader's end is met wherever training happens to be.
        raise (trainer.explained(error) if trainer else explained(error, ranks, recompute=config.recompute)) from None
    finally:
        run.release()


def _is_finished(run: RunFolder, config: PretrainConfig, resumption: Resumption) -> bool:
    """Whether nothing at all is left to do."""
    if resumption.saved is None or resumption.warnings or resumption.changed("epochs"):
        return False
    position = resumption.position
    return position.epoch >= config.epochs and finished_file(run, resumption.saved.path, position).exists()


def _finished_before(run: RunFolder, config: PretrainConfig, position: Position) -> PretrainResult:
    """The result of a run that had come to its end before."""
    logged = run.read_log(position)
    preview = run.preview(position.epoch)
    return PretrainResult(
        run=run.path,
        checkpoint=finished_file(run, run.states()[0], position),
        preview=preview if preview.exists() else None,
        epochs=position.epoch,
        steps=position.step,
        train_loss=logged.train_loss,
        zero_prediction_loss=None,  # no image is looked at for it
        psnr=logged.psnr,
        psnr_uses_original=config.norm_pix_loss,
        seconds=0.0,
        stopped=False,
        was_finished=True,
    )


def _prepare(
    config: PretrainConfig,
    run: RunFolder,
    resumption: Resumption,
    device: torch.device,
    ranks: Ranks,
    scan: PictureScan,
    held_out: PictureSource | None,
    model: MaskedAutoencoder,
    notes: tuple[str, ...],
    on_event: Callable[[Event], None],
    should_stop: Callable[[], bool],
) -> tuple[Trainer, Started]:
    """Everything up to the first step."""
    position = resumption.position
    if not run.resume:
        run.write_config(config)  # first of all: a run that is killed from here on can go on
    run.write_environment()
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
        batch_size=resumption.batch_size,
    )
    check_same_run(resumption, plan, config)
    share = ranks.share(plan.batch_size)
    here = share.stop - share.start
    notes += _decoder_note(config.decoder)
    if resumption.other_processes(ranks.size):
        notes += (f"the run's batches of {plan.batch_size} pictures are {here} in each of {ranks.size} processes here",)
        config = dataclasses.replace(config, batch_size=here)
    model.to(device)
    model.recompute_activations(config.recompute)
    loss, compiled, note = _loss(model, config, here, ranks, resumption)
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
    if resumption.saved:
        restore(resumption.saved, training_step)
    saver = Saver(
        run,
        training_step,
        ranks,
        args=official_args(config, plan, ranks),
        identity={
            **run_identity(config, plan),
            "processes": ranks.size,
            "compiled": compiled,
            "settings": deciding_settings(config),
        },
        minutes=config.save_minutes,
        keep_last=config.keep_last,
    )
    trainer = Trainer(
        config, plan, training_step, feed, previews, run, saver, position, ranks, scan.unreadable, on_event, should_stop
    )  # fmt: skip
    step_seconds = _time_batch(training_step, config, here)
    logged = run.read_log(position)
    run.start_log(position)
    if run.resume:
        _record_changes(run, resumption, config, plan, logged)
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
        step_seconds=step_seconds,
        first_epoch=position.epoch,
        first_step=position.step,
        notes=notes,
        warnings=resumption.warnings,
        processes=ranks.size,
        seconds_left=_seconds_left(config, plan, resumption, logged, ranks),
        changes=resumption.told(config, plan),
    )
    if not resumption.saved:
        advice = (*check_plan(config, plan), *check_time(config, plan, config.device, started.seconds))
        started = dataclasses.replace(started, advice=advice)
    return trainer, started


def _record_changes(
    run: RunFolder, resumption: Resumption, config: PretrainConfig, plan: TrainingPlan, logged: Logged
) -> None:
    """Let the folder tell with what settings the run goes on, and the log from where on."""
    if resumption.recorded is None or resumption.recorded.as_plain() != config.as_plain():
        run.write_config(config)
    entry = resumption.log_entry(config, plan)
    if entry is not None and entry not in logged.changes:  # it is there where the run was killed before its next state
        run.log(entry)


def _seconds_left(
    config: PretrainConfig, plan: TrainingPlan, resumption: Resumption, logged: Logged, ranks: Ranks
) -> float | None:
    """Of a run that goes on where it ran before, at the pace that its log tells."""
    elsewhere = resumption.other_processes(ranks.size) or resumption.changed("device", "precision", "compile", "shard")
    if logged.images_per_second is None or elsewhere:
        return None
    position = resumption.position
    batches = (config.epochs - position.epoch) * plan.batches_per_epoch - position.batch
    return batches * plan.batch_size / logged.images_per_second


def _scan(config: PretrainConfig, run: RunFolder, ranks: Ranks, on_event: Callable[[Event], None]) -> PictureScan:
    """All pictures; the first process of each machine looks, and the others read what it has kept."""
    if ranks.local_rank:
        ranks.wait()
    try:
        scan = scan_pictures(config.data, lambda files: on_event(Scanned(files)))
    except DataError as error:
        if not run.resume or all(url_of(path) or path.exists() for path in config.data):
            raise
        raise DataError(
            error.message, hint=f"if they have moved: maecli pretrain WHERE_THEY_ARE --resume {shown(run.path)}"
        ) from None
    if not ranks.local_rank:
        ranks.wait()
    return scan


def _starting_weights(model: MaskedAutoencoder, init: Path) -> tuple[str, ...]:
    """Load the weights to start from, and say what a user should know of them."""
    return (f"weights from {init}", *load_weights(model, load_checkpoint(init)))


def _loss(
    model: MaskedAutoencoder, config: PretrainConfig, pictures: int, ranks: Ranks, resumption: Resumption
) -> tuple[nn.Module | None, bool, tuple[str, ...]]:
    """The loss as a module, whether it is compiled, and what to say of that.

    Compiled arithmetic rounds otherwise, so a run that goes on keeps what it began with, unless told otherwise.
    """
    if not config.compile:
        return None, False, ()
    if resumption.saved and not resumption.changed("compile"):
        was_compiled = resumption.saved.identity.get("compiled")
        return (compiled_loss(model), True, ()) if was_compiled else (None, False, ())

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
