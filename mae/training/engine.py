"""Runs the training of any task, from the settings to the last step."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from mae.data.decoding.jpeg import resolve_decoder
from mae.data.sources.scan import ImageScan, scan_images
from mae.errors import DataError
from mae.io.download import is_offline, no_downloads
from mae.io.text import counted, typed
from mae.io.urls import url_of
from mae.system.device import settle
from mae.system.distributed import Ranks, ranks_from_environment
from mae.system.seeding import stream
from mae.training.checkpointer import Checkpointer, restore
from mae.training.classifier_config import RunConfig
from mae.training.compiling import compile_if_it_pays, compiled_loss
from mae.training.data_module import DataModule
from mae.training.events import Event, Scanned, Started
from mae.training.failures import explained
from mae.training.identity import deciding_settings
from mae.training.log import Logged
from mae.training.plan import TrainingPlan, make_plan
from mae.training.position import Position
from mae.training.resuming import Resumption, check_same_run, take_up
from mae.training.run import Run, TrainingState
from mae.training.run_folder import RunFolder, open_run
from mae.training.step import TrainingStep
from mae.training.tasks.base import Task
from mae.training.trackers import Trackers
from mae.training.trainer import Trainer
from mae.training.unreadable import check_unreadable

TIMED_IMAGES = 8
Config = TypeVar("Config", bound=RunConfig)


@dataclasses.dataclass(frozen=True)
class Start(Generic[Config]):
    """State of a starting run: settings resolved for this machine, run folder, and processes."""

    config: Config
    folder: RunFolder
    recorded: Mapping[str, Any] | None  # the settings in a resumed run's config.toml; None for a new run
    ranks: Ranks
    device: torch.device
    on_event: Callable[[Event], None]
    should_stop: Callable[[], bool]
    precision_reason: str | None  # why ``auto`` chose it; None if it was given
    resumption: Resumption  # the state to resume from, the same for all processes

    def explained(self, error: RuntimeError | MemoryError) -> Exception:
        """A ``TrainingError`` with a hint for known errors of torch, else the error unchanged."""
        return explained(error, self.ranks, activation_checkpointing=self.config.activation_checkpointing)


@dataclasses.dataclass(frozen=True)
class TaskType(Generic[Config]):
    """One kind of training.

    Attributes:
        make: Makes the task from the settings and the images, before anything is written: the model with its initial
            weights, and everything else that the settings name, such as held-out images.
        settle: Settles what only this task's settings leave open.
        is_complete: Whether a run whose last epoch is done has also written its other results.
    """

    make: Callable[[Start[Config], ImageScan], Task]
    is_complete: Callable[[RunFolder, Position], bool] = lambda folder, position: True
    settle: Callable[[Config], Config] = lambda config: config


@dataclasses.dataclass(frozen=True)
class Ended:
    """Result of a run of any task.

    Attributes:
        folder: Folder of the run.
        position: Position of the run at its end.
        planned, trainer: Plan and trainer of this call; None if the run was already complete.
    """

    folder: RunFolder
    position: Position
    planned: Started | None = None
    trainer: Trainer | None = None

    @property
    def checkpoint(self) -> Path:
        """The newest state, or the official file if the state is sharded."""
        folder = self.folder
        state = folder.states()[0] if folder.writes or self.trainer is None else folder.checkpoint
        official = folder.finished_file(state, self.position)
        return official if official.exists() else state

    def common(self, logged: Logged) -> dict[str, Any]:
        """The fields that the results of all tasks have, by name."""
        trainer = self.trainer
        train_loss = trainer.epochs[-1].train_loss if trainer and trainer.epochs else logged.train_loss
        return {
            "run": self.folder.path,
            "epochs": self.position.epoch,
            "steps": self.position.step,
            "train_loss": train_loss if train_loss is not None and math.isfinite(train_loss) else None,
            "seconds": trainer.seconds if trainer else 0.0,
            "stopped": trainer.stopped if trainer else False,
            "data_wait": trainer.data_wait if trainer else None,
            "first_data_wait": trainer.epochs[0].data_wait if trainer and trainer.epochs else None,
            "was_finished": trainer is None,
        }


def run_task(
    kind: TaskType[Config], config: Config, on_event: Callable[[Event], None], should_stop: Callable[[], bool]
) -> Ended:
    """Train to the last epoch, or resume the run in the folder.

    Args:
        kind: The task to train.
        config: All settings; for a resumed run those of its ``config.toml``.
        on_event: Called with each event.
        should_stop: Called between steps; once it returns True, the state is saved and the run ends.

    Raises:
        MaeError: As documented for the task's use case.
    """
    with no_downloads(config.offline):
        start = _start(kind.settle(config), on_event, should_stop)
        ended = _train(kind, start)
        start.ranks.leave()
        return ended


def plan_task(
    kind: TaskType[Config], config: Config, on_event: Callable[[Event], None] = lambda event: None
) -> Started:
    """Compute what ``run_task`` would do, up to its first step; nothing is written.

    The data is scanned, the model built and one batch timed, so an error that would stop the run is raised here too.
    """
    with no_downloads(config.offline):
        start = _start(kind.settle(config), on_event, lambda: False, writes=False)
        try:
            _, planned = _prepare(start, kind.make(start, _scan(start)))
        except (RuntimeError, MemoryError) as error:
            raise start.explained(error) from None
        start.ranks.leave()
        return planned


def _start(
    config: Config,
    on_event: Callable[[Event], None],
    should_stop: Callable[[], bool],
    *,
    writes: bool = True,
) -> Start[Config]:
    """Settle what the settings leave open, join the other processes, and find the state to resume from."""
    ranks = ranks_from_environment()
    folder, recorded = open_run(config, writes=ranks.first and writes)
    # A resumed run keeps the precision that ``auto`` chose. Its decoder may change: both give the same pixels.
    wanted = recorded.precision if recorded and config.precision == "auto" else config.precision
    computing = settle(config.device, wanted, ranks)
    config = dataclasses.replace(
        config,
        out=folder.path,
        device=computing.device.type,
        precision=computing.precision,
        decoder=resolve_decoder(config.decoder),
    )
    settings = recorded.as_plain() if recorded else None
    resumption = take_up(folder, config, settings, ranks.size) if folder.resume else Resumption()
    ranks.check_same("the saved step", resumption.position.step)
    listener = on_event if ranks.first else lambda event: None
    return Start(config, folder, settings, ranks, computing.device, listener, should_stop, computing.reason, resumption)


def _train(kind: TaskType[Config], start: Start[Config]) -> Ended:
    """Prepare and train; if preparing fails, the new folder is removed."""
    resumption = start.resumption
    finished = start.ranks.gather(_is_finished(kind, start))[0]
    if finished and not resumption.changed("data"):
        return Ended(start.folder, resumption.position)
    trainer: Trainer | None = None
    try:
        task = kind.make(start, _scan(start))
        if resumption.changed("data"):
            _plan(start, task)  # refuses other images before anything is written into the run's folder
        if finished:
            return Ended(start.folder, resumption.position)
        start.folder.make()  # only after everything named in the settings was found
        if resumption.saved:
            start.folder.set_aside_newer(resumption.saved.path)
        trainer, planned = _prepare(start, task)
        start.on_event(planned)
        if planned.probed is not None:
            trainer.note(planned.probed, planned.probed.step)
        start.ranks.begin_training()
        trainer.train()
        if not trainer.stopped:
            trainer.stopped = not task.finish(trainer.state.position)
        return Ended(start.folder, trainer.state.position, planned, trainer)
    except BaseException as error:
        # A failed start leaves no folder; a run that is interrupted in its first step can be resumed.
        if trainer is None or (isinstance(error, Exception) and trainer.state.position == resumption.position):
            start.folder.abandon()
        if not isinstance(error, RuntimeError | MemoryError):
            raise
        # For instance out of memory when the model is moved, or a loader process that died.
        raise (trainer or start).explained(error) from None
    finally:
        start.folder.release()


def _is_finished(kind: TaskType[Config], start: Start[Config]) -> bool:
    """Whether the run is complete, so that nothing is left to do."""
    resumption = start.resumption
    if resumption.saved is None or resumption.warnings or resumption.changed("epochs"):
        return False
    position = resumption.position
    if position.epoch < start.config.epochs or not kind.is_complete(start.folder, position):
        return False
    return start.folder.finished_file(resumption.saved.path, position).exists()


def _prepare(start: Start[Any], task: Task) -> tuple[Trainer, Started]:
    """Everything up to the first step."""
    config, folder, ranks, resumption = start.config, start.folder, start.ranks, start.resumption
    position = resumption.position
    settings = config.as_plain()
    if not folder.resume:
        folder.clear()
        folder.write_config(settings)  # before anything else, so that a run that is killed from here on can be resumed
    folder.write_environment()
    on_event = start.on_event
    if config.trackers() and folder.writes:
        on_event = trackers = Trackers(
            config.trackers(), folder.path, settings, position.step, offline=is_offline(), on_event=on_event
        )
        folder.when_released(trackers.close)
    folder.unreadable.start(task.unreadable)
    found = len(task.images) + len(task.unreadable)
    check_unreadable(len(task.unreadable), found, config.max_unreadable, folder.unreadable)
    plan = _plan(start, task)
    batch_size = plan.global_batch_size // ranks.size
    notes = _decoder_note(config.decoder)
    if batch_size != min(config.batch_size, plan.images // ranks.size):  # begun by another number of processes
        notes += (
            f"the run's batch of {plan.global_batch_size} images is divided among "
            f"{counted(ranks.size, 'process', 'processes')}, {batch_size} images each",
        )
    run = Run(config, plan, ranks, start.device, folder, on_event, start.should_stop)

    model = task.model.to(start.device)
    model.set_activation_checkpointing(config.activation_checkpointing)
    task.begin(run, position)
    loss, compiled = task.loss(), False
    if config.compile:
        loss, compiled, compile_notes = _compiled(loss, task, run, batch_size, resumption)
        notes += compile_notes
    step = TrainingStep(
        model,
        config.precision,
        ranks=ranks,
        shard=config.shard,
        loss=loss,
        optimizer=lambda: task.make_optimizer(plan.lr),
        clip_grad=task.clip_grad,
    )
    data = DataModule(
        plan,
        task.images,
        task.augmentation,
        ranks,
        start.device,
        workers=config.workers,
        cache_bytes=config.cache * 2**20,
    )
    folder.when_released(data.close)
    if resumption.saved:
        restore(resumption.saved, step)
    identity = {"processes": ranks.size, "compiled": compiled, "settings": deciding_settings(settings)}
    checkpointer = Checkpointer(
        folder,
        step,
        ranks,
        args=task.official_args(),
        identity={**plan.identity(), **task.identity(), **identity},
        about=task.about(),
        minutes=config.save_minutes,
        keep_every=config.save_every,
        keep_last=config.keep_last,
    )
    folder.when_released(checkpointer.close)

    step_seconds = _time_batch(step, task, batch_size)
    logged = folder.log.read(position)
    folder.log.cut(position)
    if folder.resume:
        if start.recorded != settings:
            folder.write_config(settings)
        entry = resumption.log_entry(plan)
        if entry is not None and entry not in logged.changes:  # the killed run may have logged it
            folder.log.add(entry)
    probed = task.probes.begin(run.epochs_at(position), position.step, logged) if task.probes else None
    planned = Started(
        config=config,
        model=model.config,
        plan=plan,
        parameters=sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers())),
        skipped=len(task.unreadable),
        others=task.others,
        device=config.device,
        precision=config.precision,
        precision_reason=start.precision_reason,
        workers=data.workers,
        zero_prediction_loss=task.zero_prediction_loss,
        step_seconds=step_seconds,
        first_epoch=position.epoch,
        first_step=position.step,
        notes=(*task.notes, *notes),
        warnings=(*resumption.warnings, *task.images.warnings),
        processes=ranks.size,
        seconds_left=resumption.seconds_left(plan, logged.images_per_second, ranks.size),
        changes=resumption.describe_changes(plan),
        classification=task.classification,
        probes=task.probes.plan if task.probes else None,
        probed=probed,
    )
    if not folder.resume:
        planned = dataclasses.replace(planned, advice=task.advice(planned.seconds))
    # The trainer's clock starts here, so that what was timed and measured above is no part of the first epoch.
    return Trainer(run, TrainingState(step, position), task, data, checkpointer), planned


def _plan(start: Start[Any], task: Task) -> TrainingPlan:
    """The plan; images that differ between processes, and images or a model of another run, are refused."""
    images, resumption = task.images, start.resumption
    start.ranks.check_same("images", (len(images), images.digest()))
    plan = make_plan(
        start.config,
        len(images),
        images.digest(),
        processes=start.ranks.size,
        global_batch_size=resumption.global_batch_size,
    )
    check_same_run(resumption, {**plan.identity(), **task.identity()}, start.folder)
    return plan


def _scan(start: Start[Any]) -> ImageScan:
    """All images; the first process of each machine scans, and the others read the cached scan."""
    config, ranks = start.config, start.ranks
    if ranks.local_rank:
        ranks.wait()
    try:
        found = scan_images(
            config.data, lambda files: start.on_event(Scanned(files)), cache_bytes=config.cache_disk * 10**9
        )
    except DataError as error:
        if not start.folder.resume or all(url_of(path) or path.exists() for path in config.data):
            raise
        where = typed(start.folder.path)
        raise DataError(
            error.message, hint=f"if the images were moved: maecli {config.command} NEW_FOLDER --resume {where}"
        ) from None
    if not ranks.local_rank:
        ranks.wait()
    return found


def _compiled(
    plain: nn.Module, task: Task, run: Run, images: int, resumption: Resumption
) -> tuple[nn.Module, bool, tuple[str, ...]]:
    """The loss, compiled if that is faster; whether it is compiled; and notes about that.

    Compiled code rounds differently, so a resumed run keeps the choice of its first start unless the option changes.
    """
    if resumption.saved and not resumption.changed("compile"):
        was_compiled = resumption.saved.identity.get("compiled")
        return (compiled_loss(plain), True, ()) if was_compiled else (plain, False, ())

    def take(loss: nn.Module) -> None:
        precision = run.config.precision
        step = TrainingStep(task.model, precision, loss=loss, optimizer=lambda: task.make_optimizer(0.0))
        _pass(step, task, images)

    loss, compiled, note = compile_if_it_pays(plain, take)
    if run.ranks.gather(compiled)[0] == compiled:
        return loss, compiled, (note,)
    return (plain, False, (note,)) if compiled else (compiled_loss(plain), True, (note,))  # the first one decides


def _decoder_note(decoder: str) -> tuple[str, ...]:
    if decoder != "pillow" or resolve_decoder("auto") != "pillow":
        return ()
    return ("JPEGs are decoded by Pillow; pip install 'maecli[fast]' brings a faster decoder with the same pixels",)


def _time_batch(training_step: TrainingStep, task: Task, batch_size: int) -> float:
    """Seconds of one batch's forward and backward pass; on a CPU extrapolated from a few images."""
    images = min(batch_size, TIMED_IMAGES) if training_step.device.type == "cpu" else batch_size
    _pass(training_step, task, images)  # warms up
    return _pass(training_step, task, images) * batch_size / images


def _pass(training_step: TrainingStep, task: Task, count: int) -> float:
    """Seconds of a forward and a backward pass over images of noise; weights and buffers are not changed."""
    model: nn.Module = training_step.model
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]  # a norm's running statistics
    source = stream(0, "timing")
    size, in_chans = task.model.config.img_size, task.model.config.in_chans
    # Channels last in memory, as the loader gives them.
    images = torch.randint(0, 256, (count, *size, in_chans), generator=source, dtype=torch.uint8).permute(0, 3, 1, 2)
    start = time.monotonic()
    try:
        training_step.backward(images, *task.timing_inputs(count)).item()
        return time.monotonic() - start
    finally:
        model.zero_grad(set_to_none=True)
        for buffer, before in kept:
            buffer.copy_(before)
