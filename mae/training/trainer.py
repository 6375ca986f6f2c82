"""The training loop: draw a batch, step, log, save; from any step of a run."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from mae.checkpoints import save_checkpoint
from mae.data.loader import Batch
from mae.data.scan import Unreadable
from mae.errors import CheckpointError, DataError, TrainingError
from mae.models import factory_name
from mae.seeding import stream
from mae.training.config import PretrainConfig
from mae.training.events import EpochDone, Event, PassedOver, PretrainResult, Previewed, Stepped
from mae.training.plan import TrainingPlan
from mae.training.previews import Previews
from mae.training.run_folder import Position, RunFolder
from mae.training.schedule import lr_at
from mae.training.step import TrainingStep

SECONDS_BETWEEN_SAVES = 30.0
# Reading a loss makes the host wait for the accelerator, so there the losses are read in groups.
STEPS_BETWEEN_READS = 20


class Trainer:
    """One run: it owns the position, the clock and the books; the recipe is in the config.

    Args:
        config: The run's settings, with device and precision resolved.
        plan: What follows from them for this data set.
        training_step: The run's model and its optimiser.
        run: Where to write.
        position: Where to start; the start of a new run or a saved one's place.
        unreadable: What the scan could not read already.
        on_event: Told what happens.
        should_stop: Asked between steps; once true, the state is saved and the run ends.
    """

    def __init__(
        self,
        config: PretrainConfig,
        plan: TrainingPlan,
        training_step: TrainingStep,
        previews: Previews,
        run: RunFolder,
        position: Position,
        unreadable: tuple[Unreadable, ...],
        on_event: Callable[[Event], None],
        should_stop: Callable[[], bool],
    ) -> None:
        self.config = config
        self.plan = plan
        self.training_step = training_step
        self.previews = previews
        self.run = run
        self.position = position
        self.on_event = on_event
        self.should_stop = should_stop
        self.unreadable = {bad.path: bad for bad in unreadable}
        self.clock = Clock()
        self.unread: list[tuple[Position, float, Tensor]] = []
        self.saved_at = time.monotonic()
        self.last_epoch: EpochDone | None = None
        self.psnr: float | None = None

    def train(self, batches: Iterator[Batch]) -> PretrainResult:
        """Train to the last epoch, or until asked to stop, and save.

        Raises:
            TrainingError: The loss is no longer a number, memory or disk is full.
            DataError: Too many pictures are unreadable.
        """
        started = time.monotonic()
        while self.should_continue():
            try:
                self.step(batches)
            except RuntimeError as error:
                if self.should_stop():  # a signal to the whole group takes the loader's workers first
                    break
                raise _explained(error) from error
            if self.position.batch == self.plan.batches_per_epoch:
                self.finish_epoch()
        self.read_losses()
        self.save()
        return PretrainResult(
            run=self.run.path,
            checkpoint=self.run.checkpoint,
            preview=self.run.preview(self.position.epoch) if self.run.preview(self.position.epoch).exists() else None,
            epochs=self.position.epoch,
            steps=self.position.step,
            train_loss=self.last_epoch.train_loss if self.last_epoch else float("nan"),
            psnr=self.psnr,
            seconds=time.monotonic() - started,
            stopped=self.position.epoch < self.config.epochs,
        )

    def should_continue(self) -> bool:
        """Whether there is a step left and nobody asked to stop."""
        return self.position.epoch < self.config.epochs and not self.should_stop()

    def step(self, batches: Iterator[Batch]) -> None:
        """One optimiser step over the next ``accum_iter`` batches, or those that the epoch has left."""
        here = self.position
        micro_batches = min(self.plan.accum_iter, self.plan.batches_per_epoch - here.batch)
        lr = self.lr_at(here.batch)
        losses = []
        for number in range(here.batch, here.batch + micro_batches):
            with self.clock.waiting():
                batch = next(batches)
            self.note_unreadable(batch.unreadable)
            noise = self.noise(number, len(batch.images))
            losses.append(
                self.training_step.backward(batch.images, self.config.mask_ratio, noise, share=1 / micro_batches)
            )
            self.clock.images += len(batch.images)
        self.training_step.update(lr)
        self.position = dataclasses.replace(
            here, batch=here.batch + micro_batches, step=here.step + 1, lr_sum=here.lr_sum + lr * micro_batches
        )
        self.unread.append((self.position, lr, torch.stack(losses)))
        if self.training_step.device.type == "cpu" or len(self.unread) == STEPS_BETWEEN_READS:
            self.read_losses()

    def noise(self, batch: int, pictures: int) -> Tensor:
        """(B, L) uniform, on the CPU: what a batch's masks are drawn from."""
        source = stream(self.config.seed, "mask", self.position.epoch, batch)
        return torch.rand(pictures, self.training_step.model.config.num_patches, generator=source)

    def lr_at(self, batch: int) -> float:
        """The learning rate at a batch of this epoch."""
        return lr_at(
            self.position.epoch + batch / self.plan.batches_per_epoch,
            lr=self.plan.lr,
            min_lr=self.config.min_lr,
            warmup_epochs=self.config.warmup_epochs,
            epochs=self.config.epochs,
        )

    def read_losses(self) -> None:
        """Fetch the losses of the steps since the last time, check, log and report them."""
        for at, lr, tensor in self.unread:
            losses = tensor.tolist()
            loss = sum(losses) / len(losses)
            if not abs(loss) < float("inf"):
                raise TrainingError(
                    f"the loss became {loss} at step {at.step}, epoch {at.epoch}",
                    hint=f"{self.run.checkpoint} keeps the last good state; try a lower --base-lr or a longer "
                    "--warmup-epochs" + (", or --precision bf16" if self.config.precision == "fp16" else ""),
                )
            total = self.position.loss_sum
            for value in losses:
                total += value
            self.position = dataclasses.replace(self.position, loss_sum=total)
            rate, wait = self.clock.rate()
            epoch = at.epoch + at.batch / self.plan.batches_per_epoch
            self.on_event(Stepped(epoch, at.step, loss, lr, rate, wait))
            if self.config.log_every and at.step % self.config.log_every == 0:
                self.run.log(
                    {
                        "step": at.step,
                        "epoch": round(epoch, 4),
                        "loss": loss,
                        "lr": lr,
                        "images_per_second": round(rate, 2),
                        "data_wait": round(wait, 4),
                    }
                )
        self.unread.clear()

    def finish_epoch(self) -> None:
        """Log the epoch, draw and save what is due, and go to the next one."""
        self.read_losses()
        done, batches = self.position, self.plan.batches_per_epoch
        seconds, images, wait = self.clock.epoch()
        self.last_epoch = EpochDone(
            done.epoch, done.loss_sum / batches, done.lr_sum / batches, seconds, images / seconds, wait
        )
        self.run.log(dataclasses.asdict(self.last_epoch))
        self.on_event(self.last_epoch)
        self.position = Position(epoch=done.epoch + 1, step=done.step)
        finished, last = self.position.epoch, self.position.epoch == self.config.epochs
        every = self.config.preview_every
        if every and (finished % every == 0 or last):
            path = self.run.preview(finished)
            self.psnr = self.previews.draw(path, finished)
            self.run.log({"preview": path.name, "epoch": done.epoch, "step": done.step, "psnr": self.psnr})
            self.on_event(Previewed(path, self.psnr))
        if finished % self.config.save_every == 0 and not last:
            self.save(keep=True)
        elif time.monotonic() - self.saved_at > SECONDS_BETWEEN_SAVES and not last:
            self.save()

    def save(self, *, keep: bool = False) -> None:
        """Write the newest state, and with ``keep`` one that stays."""
        targets = [self.run.checkpoint, *([self.run.kept_checkpoint(self.position.epoch - 1)] if keep else [])]
        for path in targets:
            try:
                save_checkpoint(
                    path,
                    self.training_step.model,
                    optimizer=self.training_step.optimizer,
                    epoch=self.position.epoch - 1,
                    scaler=self.training_step.scaler.state_dict(),
                    args=official_args(self.config, self.plan),
                    extra={
                        "maecli": {
                            "position": dataclasses.asdict(self.position),
                            "run": run_identity(self.config, self.plan),
                        }
                    },
                )
            except CheckpointError as error:
                before = "the checkpoint before it is untouched" if self.run.checkpoint.exists() else None
                raise TrainingError(error.message, hint=before) from None
        self.saved_at = time.monotonic()

    def note_unreadable(self, files: tuple[Unreadable, ...]) -> None:
        """Report pictures that could not be decoded, and stop when they are too many."""
        new = [bad for bad in files if bad.path not in self.unreadable]
        if not new:
            return
        for bad in new:
            self.unreadable[bad.path] = bad
            self.on_event(PassedOver(bad.path, bad.reason))
        self.run.report_unreadable(list(self.unreadable.values()))
        check_unreadable(len(self.unreadable), self.plan.pictures, self.config.max_unreadable, self.run)


class Clock:
    """Where the time goes: images per second and the share spent waiting for pictures."""

    def __init__(self) -> None:
        self.images = 0
        self._wait = 0.0
        self._window: list[tuple[float, int, float]] = [(time.monotonic(), 0, 0.0)]
        self._epoch = self._window[0]

    def waiting(self) -> Clock:
        """A context whose time counts as waiting."""
        return self

    def __enter__(self) -> None:
        self._entered = time.monotonic()

    def __exit__(self, *_: Any) -> None:
        self._wait += time.monotonic() - self._entered

    def rate(self) -> tuple[float, float]:
        """Images per second and share of waiting over the last ten seconds or the last step."""
        now = (time.monotonic(), self.images, self._wait)
        self._window.append(now)
        while len(self._window) > 2 and now[0] - self._window[0][0] > 10:
            self._window.pop(0)
        then = self._window[0]
        seconds = max(now[0] - then[0], 1e-9)
        return (now[1] - then[1]) / seconds, (now[2] - then[2]) / seconds

    def epoch(self) -> tuple[float, int, float]:
        """Seconds, images and share of waiting since the last call."""
        now, then = (time.monotonic(), self.images, self._wait), self._epoch
        self._epoch = now
        seconds = max(now[0] - then[0], 1e-9)
        return seconds, now[1] - then[1], (now[2] - then[2]) / seconds


def check_unreadable(bad: int, pictures: int, allowed: float, run: RunFolder) -> None:
    """Stop a run that is about to learn from a fraction of its data.

    Raises:
        DataError: More than the allowed share is unreadable.
    """
    if bad > allowed * pictures:
        raise DataError(
            f"{bad} of {pictures} pictures are unreadable, more than --max-unreadable {allowed:g}",
            hint=f"their names and the reasons are in {run.path / 'unreadable.tsv'}",
        )


def run_identity(config: PretrainConfig, plan: TrainingPlan) -> dict[str, Any]:
    """What may not change between the parts of one run: each value decides its losses."""
    return {
        "pictures": plan.pictures,
        "pictures_digest": plan.pictures_digest,
        "batch_size": plan.batch_size,
        "accum_iter": plan.accum_iter,
        "seed": config.seed,
        "model": repr(config.model_config()),
    }


def official_args(config: PretrainConfig, plan: TrainingPlan) -> dict[str, Any]:
    """The settings under the names of the official trainer's ``args``."""
    size = config.image_size
    return {
        "model": factory_name(config.variant),
        "input_size": size[0] if size[0] == size[1] else list(size),
        "patch_size": config.model_config().patch_size,
        "in_chans": config.in_chans,
        "mask_ratio": config.mask_ratio,
        "norm_pix_loss": config.norm_pix_loss,
        "batch_size": plan.batch_size,
        "accum_iter": plan.accum_iter,
        "epochs": config.epochs,
        "warmup_epochs": config.warmup_epochs,
        "blr": config.base_lr,
        "lr": plan.lr,
        "min_lr": config.min_lr,
        "weight_decay": config.weight_decay,
        "seed": config.seed,
        "device": config.device,
        "data_path": str(config.data[0]),
        "output_dir": str(config.out),
        "distributed": False,
    }


def _explained(error: RuntimeError) -> Exception:
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or "not enough memory" in text or "out of memory" in text:
        return TrainingError(
            "out of memory",
            hint="halve --batch-size and double --accum-iter: the step and the learning rate stay the same",
        )
    return error
