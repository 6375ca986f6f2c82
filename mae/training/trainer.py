"""The training loop: draw a batch, step, log, save; from any step of a run."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mae.data.loader import Batches
from mae.data.scan import Unreadable
from mae.errors import DataError, TrainingError
from mae.files import shown
from mae.seeding import stream
from mae.training.clock import Clock
from mae.training.config import PretrainConfig
from mae.training.events import EpochDone, Event, LeftOut, PassedOver, PretrainResult, Previewed, RolledBack, Stepped
from mae.training.failures import explained as explained_failure
from mae.training.feed import Feed
from mae.training.plan import TrainingPlan
from mae.training.previews import Previews
from mae.training.ranks import Ranks
from mae.training.replay import write_replay
from mae.training.run_folder import UNREADABLE_FILE, Position, RunFolder
from mae.training.saving import Saver, finished_file, newest_state, restore
from mae.training.schedule import lr_at
from mae.training.step import TrainingStep

# Reading a loss makes the host wait for the accelerator, so there the losses are read in groups.
STEPS_BETWEEN_READS = 20
# At fp16's loss scale of 1 nothing is scaled any more, so gradients that are not finite then will not become so.
LEAST_LOSS_SCALE = 1.0
MOST_ROLLBACKS = 3
NAMES_IN_AN_ERROR = 3


class Unread(NamedTuple):
    """A step whose loss has not been looked at."""

    before: Position
    after: Position
    lr: float
    losses: Tensor  # (batches,), this process's
    norm: Tensor
    loss_scale: Tensor


class Trainer:
    """One run: it owns the position, the clock and the books; the recipe is in the config.

    Args:
        config: The run's settings, with device and precision resolved.
        plan: What follows from them for this data set.
        training_step: The run's model and its optimiser.
        feed: Where the batches come from.
        previews: What is drawn now and then.
        run: Where to write.
        saver: Writes the states.
        position: Where to start; the start of a new run or a saved one's place.
        ranks: The processes that share the run; all of them call the same methods.
        unreadable: What the scan could not read already.
        on_event: Told what happens.
        should_stop: Asked between steps; once true, the state is saved and the run ends.
    """

    def __init__(
        self,
        config: PretrainConfig,
        plan: TrainingPlan,
        training_step: TrainingStep,
        feed: Feed,
        previews: Previews,
        run: RunFolder,
        saver: Saver,
        position: Position,
        ranks: Ranks,
        unreadable: tuple[Unreadable, ...],
        on_event: Callable[[Event], None],
        should_stop: Callable[[], bool],
    ) -> None:
        self.config = config
        self.plan = plan
        self.training_step = training_step
        self.feed = feed
        self.previews = previews
        self.run = run
        self.saver = saver
        self.position = position
        self.ranks = ranks
        self.on_event = on_event
        self.should_stop = should_stop
        self.unreadable = {bad.path: bad for bad in unreadable}
        self.unreported: list[Unreadable] = []
        self.batches: Batches | None = None
        self.clock = Clock()
        self.loaded = self.cached = 0  # images of this process since the epoch began, and those that were kept
        self.unread: list[Unread] = []
        self.last_epoch: EpochDone | None = None
        self.psnr: float | None = None

    def train(self) -> PretrainResult:
        """Train to the last epoch, or until asked to stop, and save.

        Raises:
            TrainingError: The loss is no longer a number, memory or disk is full, another process is gone.
            DataError: Too many pictures are unreadable.
        """
        started = time.monotonic()
        self.batches = self.feed.batches(self.position)
        stopped = False
        while self.position.epoch < self.config.epochs:
            stopped, due = self.ranks.ask(self.should_stop(), self.saver.due())
            if stopped:
                break
            try:
                if due:
                    self.save()
                self.step(self.batches)
                if self.position.batch == self.plan.batches_per_epoch:
                    self.finish_epoch()
            except RuntimeError as error:
                if stopped := self.ranks.alone and self.should_stop():  # a signal to the group takes the workers first
                    break
                raise self.explained(error) from error
        self.read_losses()
        # A run in shards that was killed between its last state and its official file lacks that file.
        official = self.run.kept_checkpoint(self.position.epoch - 1)
        lacks = self.training_step.spread.sharded and self.position.epoch == self.config.epochs
        self.save(wait=True, keep=lacks and not self.ranks.gather(official.exists())[0])
        state = self.run.states()[0] if self.run.writes else self.run.checkpoint
        checkpoint = finished_file(self.run, state, self.position)
        self.report_unreadable()
        preview = self.run.preview(self.position.epoch)
        logged = self.run.read_log(self.position)
        train_loss = self.last_epoch.train_loss if self.last_epoch else logged.train_loss
        return PretrainResult(
            run=self.run.path,
            checkpoint=checkpoint if checkpoint.exists() else state,
            preview=preview if preview.exists() else None,
            epochs=self.position.epoch,
            steps=self.position.step,
            train_loss=train_loss if train_loss is not None and math.isfinite(train_loss) else None,
            zero_prediction_loss=self.previews.zero_prediction_loss,
            psnr=self.psnr if self.psnr is not None else logged.psnr,
            psnr_uses_original=self.training_step.model.config.norm_pix_loss,
            seconds=time.monotonic() - started,
            stopped=stopped,
            cache_hits=self.last_epoch.cache_hits if self.last_epoch else None,
        )

    def step(self, batches: Batches) -> None:
        """One optimiser step over the next ``accum_iter`` batches, or those that the epoch has left."""
        here = self.position
        micro_batches = min(self.plan.accum_iter, self.plan.batches_per_epoch - here.batch)
        lr = self.lr_at(here.batch)
        losses = []
        for number in range(here.batch, here.batch + micro_batches):
            with self.clock.waiting():
                batch = next(batches)
            self.note_unreadable(batch.unreadable)
            if batch.not_replaced:
                raise no_image(batch.not_replaced, self.run)
            losses.append(
                self.training_step.backward(
                    batch.images,
                    self.config.mask_ratio,
                    self.noise(number),
                    share=1 / micro_batches,
                    last=number == here.batch + micro_batches - 1,
                )
            )
            self.clock.images += self.plan.batch_size
            self.loaded += len(batch.images)
            self.cached += batch.cached
        norm = self.training_step.update(lr)
        self.position = dataclasses.replace(
            here, batch=here.batch + micro_batches, step=here.step + 1, lr_sum=here.lr_sum + lr * micro_batches
        )
        self.unread.append(Unread(here, self.position, lr, torch.stack(losses), norm, self.training_step.loss_scale))
        if self.training_step.device.type == "cpu" or len(self.unread) == STEPS_BETWEEN_READS:
            self.read_losses()

    def noise(self, batch: int) -> Tensor:
        """(B, L) uniform, on the CPU: what the masks of this process's part of a batch are drawn from."""
        source = stream(self.config.seed, "mask", self.position.epoch, batch)
        whole = torch.rand(self.plan.batch_size, self.training_step.model.config.num_patches, generator=source)
        return whole[self.ranks.share(self.plan.batch_size)]

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
        steps, self.unread = self.unread, []
        if not steps:
            return
        own = torch.cat([one.losses for one in steps])
        means = iter(self.ranks.mean(own).tolist())
        norms = torch.stack([one.norm for one in steps]).tolist()
        loss_scales = torch.stack([one.loss_scale for one in steps]).tolist()
        for one, norm, loss_scale in zip(steps, norms, loss_scales, strict=True):
            losses = [next(means) for _ in range(len(one.losses))]
            loss = sum(losses) / len(losses)
            # Above its least value the loss scale may be what is too much for fp16: halved, it is tried again.
            searching = math.isfinite(loss) and not math.isfinite(norm) and loss_scale > LEAST_LOSS_SCALE
            if not searching and not (math.isfinite(loss) and math.isfinite(norm)):
                self.leave_out(one, loss, norm)
                if self.position.in_a_row >= self.config.nan_limit:
                    self.give_up(one, loss, exact=one is steps[-1])
                    return
                continue
            total = self.position.loss_sum
            for value in losses:
                total += value
            in_a_row = self.position.in_a_row if searching else 0
            self.position = dataclasses.replace(self.position, loss_sum=total, in_a_row=in_a_row)
            rate, wait = self.clock.rate()
            stepped = Stepped(self.epochs_at(one.after), one.after.step, loss, norm, one.lr, rate, wait)
            self.on_event(stepped)
            if self.config.log_every and stepped.step % self.config.log_every == 0:
                self.run.log(
                    {
                        "step": stepped.step,
                        "epoch": round(stepped.epoch, 4),
                        "loss": loss,
                        "grad_norm": norm,
                        "lr": one.lr,
                        "images_per_second": round(rate, 2),
                        "data_wait": round(wait, 4),
                    }
                )

    def epochs_at(self, position: Position) -> float:
        """A position in epochs from the run's start."""
        return position.epoch + position.batch / self.plan.batches_per_epoch

    def leave_out(self, one: Unread, loss: float, norm: float) -> None:
        """Book a step that was not applied."""
        left_out = self.position.left_out + len(one.losses)
        self.position = dataclasses.replace(self.position, left_out=left_out, in_a_row=self.position.in_a_row + 1)
        event = LeftOut(self.epochs_at(one.after), one.after.step, loss, norm, one.lr, self.position.in_a_row)
        self.on_event(event)
        self.run.log({**dataclasses.asdict(event), "epoch": round(event.epoch, 4), "left_out": True})

    def give_up(self, one: Unread, loss: float, *, exact: bool) -> None:
        """After too many steps that were left out: leave what is needed to see why, then stop or go back.

        Args:
            one: The last of them.
            loss: Its loss.
            exact: Whether nothing was applied after it, so that the weights are those that it saw.
        """
        replay = self.run.replay(self.ranks.rank, self.ranks.size)
        suspicious = not bool(one.losses.isfinite().all()) or (math.isfinite(loss) and self.ranks.first)
        batches = self.feed.again(one.before, len(one.losses))
        noise = [self.noise(one.before.batch + number) for number in range(len(batches))]
        files = [shown(name) for name in self.feed.names(one.before, len(one.losses))]
        about = {"step": one.after.step, "lr": one.lr, "loss": loss, "files": files}
        write_replay(replay, self.saver, self.config, one.before, batches, noise, about, write=suspicious)
        if self.config.on_nan == "rollback" and self.position.turn < MOST_ROLLBACKS and self.roll_back():
            return
        if exact:
            before = dataclasses.replace(
                one.before,
                loss_sum=self.position.loss_sum,
                left_out=self.position.left_out - len(one.losses),
                in_a_row=self.position.in_a_row - 1,
            )
            self.saver.save(before, wait=True)
        named = ", ".join(files[:NAMES_IN_AN_ERROR]) + (", ..." if len(files) > NAMES_IN_AN_ERROR else "")
        what = f"the loss became {loss}" if not math.isfinite(loss) else "the gradient is no finite number"
        if math.isfinite(loss) and self.config.precision == "fp16":
            what = f"fp16 gradients are not finite even at a loss scale of {LEAST_LOSS_SCALE:g} or less"
        raise TrainingError(
            f"{what} at step {one.after.step}, epoch {one.before.epoch}, lr {one.lr:.3g}, "
            f"and {self.config.nan_limit} steps in a row were left out; its pictures: {named}",
            hint=(f"maecli replay {replay} looks for the cause; " if replay.exists() else "")
            + "--resume may go on"
            + (" with --precision bf16" if self.config.precision == "fp16" else "")
            + (" with --on-nan rollback" if self.config.on_nan == "stop" else "")
            + "; a new run, with --init and another --out, takes a lower --base-lr or a longer --warmup-epochs",
        )

    def roll_back(self) -> bool:
        """Go back to the newest saved state, and on with the pictures in another order; False where there is none."""
        self.saver.finish()
        self.ranks.wait()
        state, _ = newest_state(self.run)
        if state is None:
            return False
        self.run.set_aside_newer(state.path)
        restore(state, self.training_step)
        turn = self.position.turn + 1
        self.position = dataclasses.replace(state.position, turn=turn, in_a_row=0)
        self.batches = self.feed.batches(self.position)
        self.run.start_log(self.position)
        self.run.log({"rolled_back_to": state.path.name, "step": self.position.step, "turn": turn})
        self.on_event(RolledBack(state.path, self.position.step, turn))
        self.ranks.wait()
        return True

    def finish_epoch(self) -> None:
        """Log the epoch, draw and save what is due, and go to the next one."""
        self.read_losses()
        self.report_unreadable()
        done = self.position
        if done.batch < self.plan.batches_per_epoch:  # rolled back
            return
        batches = self.plan.batches_per_epoch
        seconds, images, wait = self.clock.epoch()
        counted = batches - done.left_out
        self.last_epoch = EpochDone(
            done.epoch,
            done.loss_sum / counted if counted else float("nan"),
            done.lr_sum / batches,
            seconds,
            images / seconds,
            wait,
            self.cached / self.loaded if self.config.cache else None,
        )
        self.loaded = self.cached = 0
        entry = dataclasses.asdict(self.last_epoch)
        self.run.log({name: value for name, value in entry.items() if name != "cache_hits" or value is not None})
        self.on_event(self.last_epoch)
        self.position = Position(epoch=done.epoch + 1, step=done.step, in_a_row=done.in_a_row, turn=done.turn)
        finished, last = self.position.epoch, self.position.epoch == self.config.epochs
        every = self.config.preview_every
        if every and (finished % every == 0 or last):
            path = self.run.preview(finished)
            self.psnr = self.previews.draw(path, finished, write=self.run.writes)
            helped = self.training_step.model.config.norm_pix_loss
            self.run.log(
                {
                    "preview": path.name,
                    "epoch": done.epoch,
                    "step": done.step,
                    "psnr": self.psnr,
                    "psnr_uses_original": helped,
                }
            )
            self.on_event(Previewed(path, self.psnr, helped))
        if (finished % self.config.save_every == 0 and not last) or (last and self.training_step.spread.sharded):
            self.save(keep=True)

    def save(self, *, keep: bool = False, wait: bool = False) -> None:
        """Write the newest state, and with ``keep`` one that stays; training goes on meanwhile unless ``wait``."""
        self.read_losses()
        self.saver.save(self.position, keep=keep, wait=wait)

    def note_unreadable(self, files: tuple[Unreadable, ...]) -> None:
        """Report pictures that could not be decoded, and stop when they are too many."""
        new = list({bad.path: bad for bad in files if bad.path not in self.unreadable}.values())
        if not new:
            return
        for bad in new:
            self.unreadable[bad.path] = bad
            self.on_event(PassedOver(bad.path, bad.reason))
        if not self.ranks.alone:
            self.unreported += new
        self.run.report_unreadable(new)
        check_unreadable(len(self.unreadable), self.plan.pictures, self.config.max_unreadable, self.run)

    def report_unreadable(self) -> None:
        """Tell each other what was unreadable, so that one report holds it all."""
        if self.ranks.alone:
            return
        found = [bad for part in self.ranks.gather(self.unreported) for bad in part]
        self.unreported = []
        self.note_unreadable(tuple(found))
        self.unreported = []

    def explained(self, error: RuntimeError | MemoryError) -> Exception:
        """An error from deep inside in a user's words, or the error itself."""
        if self.batches is not None and (reason := self.batches.explain(error)) is not error:
            return reason
        return explained_failure(error, self.ranks, recompute=self.config.recompute)


def no_image(tried: Sequence[Unreadable], run: RunFolder) -> DataError:
    """The error of a run whose images cannot be read any more."""
    named = "; ".join(f"{shown(bad.path)}: {bad.reason}" for bad in tried[:NAMES_IN_AN_ERROR])
    more = "; ..." if len(tried) > NAMES_IN_AN_ERROR else ""
    return DataError(
        f"none of {len(tried)} images tried one after the other can be read: {named}{more}",
        hint=f"see whether their disk is still there; all names and reasons are in {run.path / UNREADABLE_FILE}",
    )


def check_unreadable(bad: int, pictures: int, allowed: float, run: RunFolder) -> None:
    """Stop a run that is about to learn from a fraction of its data.

    Raises:
        DataError: More than the allowed share is unreadable.
    """
    if bad > allowed * pictures:
        report = run.path / UNREADABLE_FILE
        raise DataError(
            f"{bad} of {pictures} pictures are unreadable, more than --max-unreadable {allowed:g}",
            hint=f"their names and the reasons are in {report}"
            if report.exists()
            else "a run lists them in its folder",
        )
