"""The training loop of any task, from any step of a run to the last."""

from __future__ import annotations

import dataclasses
import time

import torch

from mae.training.checkpointer import Checkpointer
from mae.training.clock import Throughput
from mae.training.data_module import DataModule
from mae.training.events import EpochDone, Previewed, Probed, Validated
from mae.training.failures import explained
from mae.training.monitor import PendingStep, StepMonitor
from mae.training.nonfinite import give_up
from mae.training.position import Position
from mae.training.run import Run, TrainingState
from mae.training.tasks.base import Task
from mae.training.unreadable import UnreadableFiles


class Trainer:
    """Trains one run.

    Args:
        run: Run context.
        state: Training state; updated in place.
        task: The task: loss, optimiser and inputs.
        data: Provides the batches.
        checkpointer: Writes the states.

    Attributes:
        stopped: Whether the run was stopped before its last epoch.
        seconds: Duration of training in seconds.
        epochs: The epochs that this process has finished.
        last_preview: The newest preview of this process; None before the first.
    """

    def __init__(
        self, run: Run, state: TrainingState, task: Task, data: DataModule, checkpointer: Checkpointer
    ) -> None:
        self.run = run
        self.state = state
        self.task = task
        self.data = data
        self.checkpointer = checkpointer
        self.throughput = Throughput()
        self.monitor = StepMonitor(run, state, self.throughput)
        self.unreadable = UnreadableFiles(run, task.unreadable)
        self.loaded = self.cached = 0  # this process's images since the epoch began, and how many came from ``--cache``
        self.updating = False  # weights and position do not belong together, so they must not be saved
        self.stopped = False
        self.seconds = 0.0
        self.epochs: list[EpochDone] = []
        self.last_preview: Previewed | None = None

    @property
    def data_wait(self) -> float | None:
        """Fraction of the time of these epochs spent waiting for images; None before the first."""
        seconds = sum(one.seconds for one in self.epochs)
        return sum(one.data_wait * one.seconds for one in self.epochs) / seconds if self.epochs else None

    def train(self) -> None:
        """Train to the last epoch, or until the run is stopped, and save.

        Raises:
            TrainingError: The loss stays non-finite, memory or disk is full, or another process has died.
            DataError: Too many images are unreadable.
        """
        started = time.monotonic()
        self.data.seek(self.state.position)
        try:
            while self.should_continue():
                if not self.epoch_is_done():  # it is if the run was stopped while the epoch was evaluated
                    self.step()
                if self.epoch_is_done():
                    self.finish_epoch()
        except RuntimeError as error:
            # A signal to all processes may end loader processes first, and torch then raises an error anywhere.
            self.stopped = self.run.ranks.alone and self.run.should_stop() and not self.updating
            if not self.stopped:
                raise self.explained(error) from error
        self.finish()
        self.seconds = time.monotonic() - started

    def should_continue(self) -> bool:
        """Whether to take another step; saves the state if it is due."""
        if self.state.position.epoch >= self.run.plan.epochs:
            return False
        with self.run.ranks.ask(lambda: (self.run.should_stop(), self.checkpointer.due())) as (self.stopped, due):
            if due and not self.stopped:
                self.save()
        return not self.stopped and self.state.position.epoch < self.run.plan.epochs

    def step(self) -> None:
        """One optimiser step over the next ``accum_iter`` batches, or the remaining ones of the epoch."""
        run, step, here = self.run, self.state.step, self.state.position
        micro_batches = min(run.plan.accum_iter, run.plan.batches_per_epoch - here.batch)
        lr = run.lr_at(here)
        losses = []
        for number in range(here.batch, here.batch + micro_batches):
            with self.throughput.waiting():
                batch = self.data.next_batch()
            self.unreadable.note(batch.unreadable)
            self.unreadable.require_image(batch.not_replaced)
            last = number == here.batch + micro_batches - 1
            losses.append(
                step.backward(batch.images, *self.task.inputs(here, number, batch), share=1 / micro_batches, last=last)
            )
            self.throughput.images += run.plan.global_batch_size
            self.loaded += len(batch.images)
            self.cached += batch.cached
        after = dataclasses.replace(
            here, batch=here.batch + micro_batches, step=here.step + 1, lr_sum=here.lr_sum + lr * micro_batches
        )
        self.updating = True
        norm = step.update(lr)
        self.state.position = after
        self.monitor.pending.append(PendingStep(here, after, lr, torch.stack(losses), norm, step.loss_scale))
        self.updating = False
        if self.monitor.due:
            self.read_losses()

    def read_losses(self) -> None:
        """Read the losses of the pending steps; too many non-finite ones stop the run or roll it back."""
        if failed := self.monitor.read():
            give_up(self.run, self.state, self.task, self.data, self.checkpointer, failed)

    def epoch_is_done(self) -> bool:
        """Whether the last step of the epoch is done."""
        return self.state.position.batch == self.run.plan.batches_per_epoch

    def finish_epoch(self) -> None:
        """Log the epoch, validate, draw the preview and save if due, and begin the next epoch."""
        self.read_losses()
        self.unreadable.share()
        if not self.epoch_is_done():  # rolled back
            return
        self.log_epoch()
        done = self.state.position
        finished, last = done.epoch + 1, done.epoch + 1 == self.run.plan.epochs
        self.validate(done)
        if self.task.shows(finished):
            self.preview(done, finished)
        self.state.position = Position(epoch=finished, step=done.step, in_a_row=done.in_a_row, turn=done.turn)
        if (self.checkpointer.keeps(finished) and not last) or (last and self.state.step.parallel.sharded):
            self.save(keep=True)

    def log_epoch(self) -> None:
        """Write the log line of the finished epoch."""
        done, batches = self.state.position, self.run.plan.batches_per_epoch
        seconds, images, wait = self.throughput.epoch()
        counted = batches - done.left_out
        epoch = EpochDone(
            done.epoch,
            done.loss_sum / counted if counted else float("nan"),
            done.lr_sum / batches,
            seconds,
            images / seconds,
            wait,
            self.cached / self.loaded if self.data.caches and self.loaded else None,
        )
        self.loaded = self.cached = 0
        self.epochs.append(epoch)
        entry = dataclasses.asdict(epoch)
        if epoch.cache_hits is None:
            del entry["cache_hits"]
        self.run.folder.log.add(entry)
        self.run.on_event(epoch)

    def validate(self, done: Position) -> None:
        """Evaluate on held-out images, if there are any; the time is not counted as training."""
        with self.throughput.paused():
            validated = self.task.validate(done)
        if validated is not None:
            self.note(validated, done.step)

    def note(self, validated: Validated | Probed, step: int) -> None:
        """Log a validation or probe result."""
        entry = {**dataclasses.asdict(validated), "step": step}
        self.run.folder.log.add({name: value for name, value in entry.items() if value is not None})
        self.run.on_event(validated)

    def preview(self, done: Position, finished: int) -> None:
        """Draw the preview of an epoch."""
        folder = self.run.folder
        self.last_preview = self.task.preview(folder.preview(finished), finished, write=folder.writes)
        drawn = dataclasses.asdict(self.last_preview)
        folder.log.add({"preview": drawn.pop("path").name, "epoch": done.epoch, "step": done.step, **drawn})
        self.run.on_event(self.last_preview)

    def save(self, *, keep: bool = False, wait: bool = False) -> None:
        """Save the state, with ``keep`` also as ``checkpoint-EPOCH.pth``; with ``wait``, wait until it is written."""
        self.read_losses()
        self.checkpointer.save(self.state.position, keep=keep, wait=wait)

    def finish(self) -> None:
        """Save the state at the end of training, also if the run was stopped."""
        self.read_losses()
        # A sharded run whose --epochs was lowered to the finished ones has no official file of its last epoch yet.
        position, folder = self.state.position, self.run.folder
        official = folder.kept_checkpoint(position.epoch - 1)
        lacks = self.state.step.parallel.sharded and position.epoch == self.run.plan.epochs
        self.save(wait=True, keep=lacks and not self.run.ranks.gather(official.exists())[0])
        self.unreadable.share()

    def explained(self, error: RuntimeError | MemoryError) -> Exception:
        """A ``TrainingError`` with a hint for known errors of torch, else the error unchanged."""
        if (reason := self.data.explain(error)) is not error:
            return reason
        return explained(error, self.run.ranks, activation_checkpointing=self.run.config.activation_checkpointing)
