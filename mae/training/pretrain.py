"""Pre-train a masked autoencoder on a folder of images."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable

import torch
from torch import nn

from mae.checkpoints import load_checkpoint, load_weights
from mae.data.decoding.image import check_channels
from mae.data.decoding.jpeg import resolve_decoder
from mae.data.sources.base import ImageSource
from mae.data.sources.scan import ImageScan, scan_images
from mae.errors import DataError
from mae.io.download import is_offline, obeys_offline
from mae.io.text import shown
from mae.io.urls import url_of
from mae.mae import MaskedAutoencoder
from mae.models import create_model
from mae.system.device import resolve_device, resolve_precision
from mae.system.distributed import Ranks, ranks_from_environment
from mae.system.seeding import derive_seed, seeded, stream
from mae.training.checkpointer import Checkpointer, finished_file, restore
from mae.training.compiling import compile_if_it_pays, compiled_loss
from mae.training.config import PretrainConfig
from mae.training.data_module import DataModule
from mae.training.events import Event, PretrainResult, Scanned, Started
from mae.training.failures import explained
from mae.training.identity import deciding_settings, official_args, run_identity
from mae.training.plan import TrainingPlan, check_plan, check_time, make_plan
from mae.training.previews import Previews, held_out_images
from mae.training.resuming import Resumption, check_same_run, take_up
from mae.training.run import Run, TrainingState
from mae.training.run_folder import Logged, Position, RunFolder, holds_run
from mae.training.step import TrainingStep
from mae.training.tasks.pretrain import PretrainingTask
from mae.training.trackers import Trackers
from mae.training.trainer import Trainer
from mae.training.unreadable import check_unreadable

TIMED_IMAGES = 8


@obeys_offline
def pretrain(
    config: PretrainConfig,
    on_event: Callable[[Event], None] = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> PretrainResult:
    """Train on images, keeping everything in a run folder.

    With ``config.resume`` the run in that folder goes on: the same losses and weights, bit for bit on a CPU,
    as if it had never stopped.

    Args:
        config: All settings; for a resumed run those of its ``config.toml``.
        on_event: Told what happens, see ``mae.training.events``.
        should_stop: Asked between steps; once true, the state is saved and the run ends.

    Raises:
        ConfigError: Settings that cannot be used here.
        DataError: No images, or too many of them unreadable.
        CheckpointError: ``init`` or the run's checkpoint cannot be used.
        TrainingError: Training cannot go on.
    """
    start = _start(config, on_event, should_stop)
    result = _train(start, _resumption(start))
    start.ranks.leave()
    return result


@obeys_offline
def plan_run(config: PretrainConfig, on_event: Callable[[Event], None] = lambda event: None) -> Started:
    """Compute what ``pretrain`` would do with the same settings, up to its first step; nothing is written.

    The data is scanned, the model built and one batch timed, so that what would stop the run stops this too.

    Args:
        config: All settings.
        on_event: Told what happens on the way.

    Raises:
        MaeError: As ``pretrain``.
    """
    start = _start(config, on_event, lambda: False, writes=False)
    try:
        _, planned = _prepare(start, _resumption(start), _find(start))
    except (RuntimeError, MemoryError) as error:
        raise start.explained(error) from None
    start.ranks.leave()
    return planned


@dataclasses.dataclass(frozen=True)
class _Start:
    """Where a run begins: its settings, resolved for this machine, its folder and its processes."""

    config: PretrainConfig
    folder: RunFolder
    recorded: PretrainConfig | None  # the settings in the folder of a run that goes on
    ranks: Ranks
    device: torch.device
    on_event: Callable[[Event], None]
    should_stop: Callable[[], bool]

    def explained(self, error: RuntimeError | MemoryError) -> Exception:
        """An error from deep inside in a user's words, or the error itself."""
        return explained(error, self.ranks, activation_checkpointing=self.config.activation_checkpointing)


@dataclasses.dataclass(frozen=True)
class _Found:
    """All that the settings name: images, preview photographs, the model and its first weights."""

    scan: ImageScan
    held_out: ImageSource | None
    model: MaskedAutoencoder
    notes: tuple[str, ...]


def _start(
    config: PretrainConfig,
    on_event: Callable[[Event], None],
    should_stop: Callable[[], bool],
    *,
    writes: bool = True,
) -> _Start:
    """Resolve the settings and meet the other processes."""
    check_channels(config.in_chans)
    ranks = ranks_from_environment()
    device = resolve_device(config.device, None if ranks.alone else ranks.local_rank)
    config = dataclasses.replace(config, device=device.type, out=config.resume or config.out)
    resume = config.resume is not None or (config.auto_resume and holds_run(config.out))
    folder = RunFolder(config.out, resume=resume, writes=ranks.first and writes)
    recorded = folder.read_config() if resume else None
    # What is left to choose stays what it was chosen to be; a JPEG has the same pixels whatever decodes it.
    precision = recorded.precision if recorded and config.precision == "auto" else config.precision
    config = dataclasses.replace(
        config, precision=resolve_precision(precision, device), decoder=resolve_decoder(config.decoder)
    )
    ranks.join(device)
    return _Start(config, folder, recorded, ranks, device, on_event if ranks.first else _ignore, should_stop)


def _ignore(event: Event) -> None:
    pass


def _resumption(start: _Start) -> Resumption:
    """Where the run resumes from, the same for all processes."""
    found = take_up(start.folder, start.config, start.recorded, start.ranks.size) if start.folder.resume else None
    resumption = found or Resumption()
    start.ranks.check_same("the saved step", resumption.position.step)
    return resumption


def _train(start: _Start, resumption: Resumption) -> PretrainResult:
    """Prepare and train; a start that comes to nothing leaves no folder."""
    if start.ranks.gather(_is_finished(start, resumption))[0]:
        return _finished_before(start.folder, resumption.position)
    found = _find(start, with_init=resumption.saved is None)
    trainer: Trainer | None = None
    try:
        start.folder.make()  # not before all that was named has been found
        if resumption.saved:
            start.folder.set_aside_newer(resumption.saved.path)
        trainer, planned = _prepare(start, resumption, found)
        start.on_event(planned)
        start.ranks.begin_training()
        trainer.train()
        return _result(trainer, planned.zero_prediction_loss)
    except BaseException as error:
        # A start that came to nothing leaves no folder; one that was broken off in its first step can go on.
        if trainer is None or (isinstance(error, Exception) and trainer.state.position == resumption.position):
            start.folder.abandon()
        if not isinstance(error, RuntimeError | MemoryError):
            raise
        # Memory may run out as soon as the model is moved; a loader's end is met wherever training happens to be.
        raise (trainer or start).explained(error) from None
    finally:
        start.folder.release()


def _result(trainer: Trainer, zero_prediction_loss: float) -> PretrainResult:
    """How a run ended."""
    folder, position = trainer.run.folder, trainer.state.position
    state = folder.states()[0] if folder.writes else folder.checkpoint
    checkpoint = finished_file(folder, state, position)
    preview = folder.preview(position.epoch)
    logged = folder.read_log(position)
    train_loss = trainer.last_epoch.train_loss if trainer.last_epoch else logged.train_loss
    return PretrainResult(
        run=folder.path,
        checkpoint=checkpoint if checkpoint.exists() else state,
        preview=preview if preview.exists() else None,
        epochs=position.epoch,
        steps=position.step,
        train_loss=train_loss if train_loss is not None and math.isfinite(train_loss) else None,
        zero_prediction_loss=zero_prediction_loss,
        psnr=trainer.last_preview.psnr if trainer.last_preview else logged.psnr,
        psnr_uses_original=trainer.run.config.norm_pix_loss,
        seconds=trainer.seconds,
        stopped=trainer.stopped,
        cache_hits=trainer.last_epoch.cache_hits if trainer.last_epoch else None,
    )


def _is_finished(start: _Start, resumption: Resumption) -> bool:
    """Whether nothing at all is left to do."""
    if resumption.saved is None or resumption.warnings or resumption.changed("epochs"):
        return False
    position = resumption.position
    done = position.epoch >= start.config.epochs
    return done and finished_file(start.folder, resumption.saved.path, position).exists()


def _finished_before(folder: RunFolder, position: Position) -> PretrainResult:
    """The result of a run that had come to its end before."""
    logged = folder.read_log(position)
    preview = folder.preview(position.epoch)
    recorded = folder.read_config()
    return PretrainResult(
        run=folder.path,
        checkpoint=finished_file(folder, folder.states()[0], position),
        preview=preview if preview.exists() else None,
        epochs=position.epoch,
        steps=position.step,
        train_loss=logged.train_loss,
        zero_prediction_loss=None,
        psnr=logged.psnr,
        psnr_uses_original=recorded.norm_pix_loss if recorded else False,
        seconds=0.0,
        stopped=False,
        was_finished=True,
    )


def _find(start: _Start, *, with_init: bool = True) -> _Found:
    """Look for all that is named, before anything is written."""
    config = start.config
    scan = _scan(start)
    held_out = held_out_images(config.val)
    with seeded(derive_seed(config.seed, "weights")):
        model = create_model(config.model_config())
    notes: tuple[str, ...] = ()
    if with_init and config.init is not None:
        notes = (f"weights from {config.init}", *load_weights(model, load_checkpoint(config.init)))
    return _Found(scan, held_out, model, notes)


def _prepare(start: _Start, resumption: Resumption, found: _Found) -> tuple[Trainer, Started]:
    """Everything up to the first step."""
    config, folder, ranks, position = start.config, start.folder, start.ranks, resumption.position
    if not folder.resume:
        folder.write_config(config)  # first of all: a run that is killed from here on can go on
    folder.write_environment()
    on_event = start.on_event
    if config.trackers() and folder.writes:
        settings = config.as_plain()
        on_event = trackers = Trackers(
            config.trackers(), folder.path, settings, position.step, offline=is_offline(), on_event=on_event
        )
        folder.when_released(trackers.close)
    plan = _plan(start, resumption, found.scan)
    share = ranks.share(plan.batch_size)
    here = share.stop - share.start
    notes = found.notes + _decoder_note(config.decoder)
    if resumption.other_processes(ranks.size):
        notes += (f"the run's batches of {plan.batch_size} images are {here} in each of {ranks.size} processes here",)
        config = dataclasses.replace(config, batch_size=here)
    run = Run(config, plan, ranks, start.device, folder, on_event, start.should_stop)

    model = found.model.to(start.device)
    model.set_activation_checkpointing(config.activation_checkpointing)
    loss, compiled, note = _loss(model, run, here, resumption)
    notes += note
    step = TrainingStep(
        model,
        config.precision,
        lr=plan.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        ranks=ranks,
        shard=config.shard,
        loss=loss,
    )
    data = DataModule(config, plan, found.scan.images, ranks, start.device, found.scan.unreadable)
    previews = Previews(model, found.scan.images, found.held_out, config.mask_ratio)
    if resumption.saved:
        restore(resumption.saved, step)
    identity = {"processes": ranks.size, "compiled": compiled, "settings": deciding_settings(config)}
    checkpointer = Checkpointer(
        folder,
        step,
        ranks,
        args=official_args(config, plan, ranks),
        identity={**run_identity(config, plan), **identity},
        minutes=config.save_minutes,
        keep_last=config.keep_last,
    )
    task = PretrainingTask(config, plan, ranks, previews)
    trainer = Trainer(run, TrainingState(step, position), task, data, checkpointer)

    step_seconds = _time_batch(step, config, here)
    logged = folder.read_log(position)
    folder.start_log(position)
    if folder.resume:
        _record_changes(run, resumption, logged)
    planned = Started(
        config=config,
        model=model.config,
        plan=plan,
        parameters=sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers())),
        skipped=len(found.scan.unreadable),
        others=found.scan.others,
        device=config.device,
        precision=config.precision,
        workers=data.workers,
        zero_prediction_loss=previews.zero_prediction_loss,
        step_seconds=step_seconds,
        first_epoch=position.epoch,
        first_step=position.step,
        notes=notes,
        warnings=resumption.warnings,
        processes=ranks.size,
        seconds_left=_seconds_left(run, resumption, logged),
        changes=resumption.told(config, plan),
    )
    if not folder.resume:
        advice = (*check_plan(config, plan), *check_time(config, plan, config.device, planned.seconds))
        planned = dataclasses.replace(planned, advice=advice)
    return trainer, planned


def _plan(start: _Start, resumption: Resumption, scan: ImageScan) -> TrainingPlan:
    """Compute the plan for the images that there are, which every process must have found alike."""
    config, ranks, images = start.config, start.ranks, scan.images
    start.folder.start_unreadable(scan.unreadable)
    found = len(images) + len(scan.unreadable)
    check_unreadable(len(scan.unreadable), found, config.max_unreadable, start.folder)
    ranks.check_same("images", (len(images), images.digest()))
    plan = make_plan(config, len(images), images.digest(), processes=ranks.size, batch_size=resumption.batch_size)
    check_same_run(resumption, plan, config)
    return plan


def _record_changes(run: Run, resumption: Resumption, logged: Logged) -> None:
    """Record in the folder with which settings the run is resumed, and in the log from which step on."""
    if resumption.recorded is None or resumption.recorded.as_plain() != run.config.as_plain():
        run.folder.write_config(run.config)
    entry = resumption.log_entry(run.config, run.plan)
    if entry is not None and entry not in logged.changes:  # it is there where the run was killed before its next state
        run.folder.log(entry)


def _seconds_left(run: Run, resumption: Resumption, logged: Logged) -> float | None:
    """Of a run that goes on where it ran before, at the pace that its log tells."""
    changed = resumption.changed("device", "precision", "compile", "shard")
    elsewhere = changed or resumption.other_processes(run.ranks.size)
    if logged.images_per_second is None or elsewhere:
        return None
    position, plan = resumption.position, run.plan
    batches = (run.config.epochs - position.epoch) * plan.batches_per_epoch - position.batch
    return batches * plan.batch_size / logged.images_per_second


def _scan(start: _Start) -> ImageScan:
    """All images; the first process of each machine looks, and the others read what it has kept."""
    config, ranks = start.config, start.ranks
    if ranks.local_rank:
        ranks.wait()
    try:
        scan = scan_images(
            config.data, lambda files: start.on_event(Scanned(files)), cache_bytes=config.cache_disk * 10**9
        )
    except DataError as error:
        if not start.folder.resume or all(url_of(path) or path.exists() for path in config.data):
            raise
        where = shown(start.folder.path)
        raise DataError(
            error.message, hint=f"if they have moved: maecli pretrain WHERE_THEY_ARE --resume {where}"
        ) from None
    if not ranks.local_rank:
        ranks.wait()
    return scan


def _loss(
    model: MaskedAutoencoder, run: Run, images: int, resumption: Resumption
) -> tuple[nn.Module | None, bool, tuple[str, ...]]:
    """The loss as a module, whether it is compiled, and what to say of that.

    Compiled arithmetic rounds otherwise, so a run that goes on keeps what it began with, unless told otherwise.
    """
    config = run.config
    if not config.compile:
        return None, False, ()
    if resumption.saved and not resumption.changed("compile"):
        was_compiled = resumption.saved.identity.get("compiled")
        return (compiled_loss(model), True, ()) if was_compiled else (None, False, ())

    def take(loss: nn.Module) -> None:
        step = TrainingStep(model, config.precision, lr=0.0, betas=config.betas, weight_decay=0.0, loss=loss)
        _pass(step, config, images)

    loss, compiled, note = compile_if_it_pays(model, take)
    if run.ranks.gather(compiled)[0] == compiled:
        return loss, compiled, (note,)
    return (None, False, (note,)) if compiled else (compiled_loss(model), True, (note,))  # the first one decides


def _decoder_note(decoder: str) -> tuple[str, ...]:
    if decoder != "pillow" or resolve_decoder("auto") != "pillow":
        return ()
    return ("JPEGs are decoded by Pillow; pip install 'maecli[fast]' brings a faster decoder with the same pixels",)


def _time_batch(training_step: TrainingStep, config: PretrainConfig, batch_size: int) -> float:
    """Seconds of one batch's forward and backward pass, from a few images of noise; nothing is changed."""
    images = min(batch_size, TIMED_IMAGES) if training_step.device.type == "cpu" else batch_size
    _pass(training_step, config, images)  # warms up
    return _pass(training_step, config, images) * batch_size / images


def _pass(training_step: TrainingStep, config: PretrainConfig, count: int) -> float:
    """Seconds of a forward and a backward pass over noise."""
    source = stream(config.seed, "timing")
    shape = (count, *config.image_size, config.in_chans)  # as the loader lays them out in memory
    images = torch.randint(0, 256, shape, generator=source, dtype=torch.uint8).permute(0, 3, 1, 2)
    noise = torch.rand(count, training_step.model.config.num_patches, generator=source)
    start = time.monotonic()
    try:
        training_step.backward(images, config.mask_ratio, noise).item()
        return time.monotonic() - start
    finally:
        training_step.model.zero_grad(set_to_none=True)
