"""Shows a run's events: the plan as a panel, progress as a bar, or plain lines if there is no terminal."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mae.config import format_size
from mae.io.text import shown
from mae.training.config import PretrainConfig
from mae.training.events import (
    EpochDone,
    Evaluating,
    Event,
    FinalTest,
    ImageUnreadable,
    Previewed,
    Probed,
    RolledBack,
    Scanned,
    Started,
    Stepped,
    StepSkipped,
    TrackerFailed,
    Validated,
)
from maecli.output import Output, can_redraw, make_console, print_line

if TYPE_CHECKING:
    from rich.panel import Panel

SECONDS_BETWEEN_LINES = 10.0
NARROW = 100  # columns needed for the bar with all values beside it


class TrainingView:
    """Shows a run's progress; a context manager, so that the bar is removed before an error is printed."""

    def __init__(self, output: Output) -> None:
        self.output = output
        self.console = make_console(sys.stderr)
        self.narrow = self.console.width < NARROW
        self.bar: Any = None
        self.total_steps = 0
        self.started = 0.0
        self.first_step = 0
        self.spoke = self.probed = 0.0

    def __enter__(self) -> TrainingView:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, ImageUnreadable):
            self.output.warn(f"unreadable: {shown(event.path)}: {event.reason}")
        elif isinstance(event, StepSkipped):
            what = "loss" if not math.isfinite(event.loss) else "gradient"
            value = event.loss if not math.isfinite(event.loss) else event.grad_norm
            self.output.warn(
                f"step {event.step} was skipped: its {what} is {value} (lr {event.lr:.2e}, {event.in_a_row} in a row)"
            )
        elif isinstance(event, RolledBack):
            self.first_step, self.started = event.step, time.monotonic()  # the rate counts from here
            self.output.warn(f"went back to {event.checkpoint}, step {event.step}; the image order is different now")
        elif isinstance(event, TrackerFailed):
            self.output.warn(f"{event.tracker} gets no more entries: {event.reason}; log.jsonl is complete")
        elif isinstance(event, Started) and self.output.quiet:
            for warning in event.warnings:
                self.output.warn(warning)
        elif self.output.quiet:
            return
        elif isinstance(event, Scanned):
            if event.files % 8192 == 0:
                self.output.note(f"{event.files:,} files scanned")
        elif isinstance(event, Started):
            self._start(event)
        elif isinstance(event, Stepped):
            self._step(event)
        elif isinstance(event, EpochDone):
            self._epoch(event)
        elif isinstance(event, Evaluating):
            self._evaluating(event)
        elif isinstance(event, Validated):
            best = ", the best so far" if event.best else ""
            self._say(
                f"epoch {event.epoch + 1}: held-out accuracy {event.val_accuracy:.1%}, loss {event.val_loss:.5g}{best}"
            )
        elif isinstance(event, FinalTest):
            self._say(f"tested on {event.test_images:,} images with the weights of epoch {event.epoch + 1}")
        elif isinstance(event, Probed):
            self._probed(event)
        elif isinstance(event, Previewed):
            self._say(
                f"epoch {event.path.stem.removeprefix('epoch-').lstrip('0')}: image {shown(event.path)}, "
                f"{psnr_text(event.psnr, helped=event.psnr_uses_original)}"
            )

    def _start(self, event: Started) -> None:
        self.console.print(plan_panel(event))
        tell_plan(event, self.output)
        self.total_steps, self.first_step = event.plan.total_steps, event.first_step
        self.started = time.monotonic()
        if can_redraw(sys.stderr):
            from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

            columns: list[ProgressColumn] = [TextColumn("{task.description}"), TextColumn("{task.percentage:.0f}%")]
            if not self.narrow:
                columns[1:1] = [BarColumn()]
                columns += [TextColumn("left"), TimeRemainingColumn()]
            self.bar = Progress(*columns, console=self.console)
            self.task = self.bar.add_task("starting", total=self.total_steps, completed=event.first_step)
            self.bar.start()

    def _step(self, event: Stepped) -> None:
        rates = f"{event.images_per_second:.0f} img/s  data {event.data_wait:.0%}"
        if self.bar is not None:
            text = f"epoch {event.epoch:.1f}  loss {event.loss:.4f}"
            if not self.narrow:
                text += f"  lr {event.lr:.2e}  {rates}"
            self.bar.update(self.task, completed=event.step, description=text)
            return
        now = time.monotonic()
        if now - self.spoke > SECONDS_BETWEEN_LINES:
            self.spoke = now
            done = event.step - self.first_step
            left = (now - self.started) / done * (self.total_steps - event.step)
            self._say(
                f"epoch {event.epoch:.2f}  step {event.step}/{self.total_steps}  loss {event.loss:.4f}  "
                f"lr {event.lr:.2e}  {rates}  left {duration(left)}"
            )

    def _epoch(self, event: EpochDone) -> None:
        if self.bar is not None and event.seconds > SECONDS_BETWEEN_LINES:
            self._say(
                f"epoch {event.epoch + 1}: loss {event.train_loss:.4f}  lr {event.train_lr:.2e}  "
                f"{event.images_per_second:.0f} img/s  data {event.data_wait:.0%}  {duration(event.seconds)}"
                + (f"  {event.cache_hits:.0%} from the cache" if event.cache_hits is not None else "")
            )

    def _evaluating(self, event: Evaluating) -> None:
        text = f"{event.part} images: {event.images:,} of {event.total:,}"
        if self.bar is not None:
            self.bar.update(self.task, description=text)
        elif time.monotonic() - self.spoke > SECONDS_BETWEEN_LINES:
            self.spoke = time.monotonic()
            self._say(text)

    def _probed(self, event: Probed) -> None:
        """Print each probe's result; a held-out loss alone is printed only as often as epochs are."""
        if event.knn is None and event.epochs and time.monotonic() - self.probed < SECONDS_BETWEEN_LINES:
            return
        self.probed = time.monotonic()
        self._say(f"{'before training' if not event.epochs else f'epoch {event.epochs:.4g}'}: {probed_text(event)}")

    def _say(self, line: str) -> None:
        print_line(self.bar.console if self.bar is not None else self.console, line)


def tell_plan(event: Started, output: Output) -> None:
    """Print a plan's notes, warnings and advice."""
    for warning in (*event.warnings, *event.plan.warnings):
        output.warn(warning)
    for advice in event.advice:
        output.warn(f"{advice.message}; try {advice.options}")
    for note in event.notes:
        output.note(note)


def plan_panel(event: Started) -> Panel:
    """The plan of a run."""
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    plan, config = event.plan, event.config
    skipped = f", {event.skipped} unreadable skipped" if event.skipped else ""
    others = f", {event.others} other files ignored" if event.others else ""
    scaled = "given" if config.lr is not None else f"{config.base_lr:g} x {plan.effective_batch_size} / 256"
    accumulated = f" x {plan.accum_iter} accumulated = {plan.effective_batch_size}" if plan.accum_iter > 1 else ""
    shared = (
        f", {plan.global_batch_size // event.processes} in each of {event.processes} processes"
        if event.processes > 1
        else ""
    )
    why = f" ({event.precision_reason})" if event.precision_reason else ""
    rows = {
        "images": f"{plan.images:,} found{skipped}{others}",
        **_what_is_learnt(event),
        "batch": f"{plan.global_batch_size}{shared}{accumulated}",
        "learning rate": f"{plan.lr:.3g} ({scaled}), warm-up {config.warmup_epochs:g} of {config.epochs} epochs, then "
        f"cosine to {config.min_lr:g}",
        "steps": f"{plan.total_steps:,} ({plan.steps_per_epoch:,} an epoch)"
        + (f", resuming after step {event.first_step:,}" if event.first_step else ""),
        "computing": f"{event.device}, {event.precision}{why}, {event.workers} loader "
        + ("process" if event.workers == 1 else "processes"),
        "time": f"about {duration(event.seconds)}, "
        + ("if data loading keeps up" if event.seconds_left is None else "at the rate in its log"),
        "folder": shown(config.out),
    }
    rows |= _probe_rows(event)
    if event.changes:
        rows["changed"] = "\n".join(event.changes)
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(Text(name, style="bold"), Text(value, overflow="fold"))
    title = event.classification.command if event.classification else "pretrain"
    return Panel(table, title=title, expand=False)


def _what_is_learnt(event: Started) -> dict[str, str]:
    """The rows of a plan that differ from task to task."""
    config, model, classification = event.config, event.model, event.classification
    sizes = f"{format_size(model.img_size)} px, patches of {model.patch_size}, {model.in_chans} channels"
    if classification is None:
        assert isinstance(config, PretrainConfig)
        changed = ", ".join(f"{name} {value:g}" for name, value in config.changed_sizes().items())
        variant = f"{config.variant} with {changed}" if changed else config.variant
        target = "normalised pixels" if model.norm_pix_loss else "raw pixels"
        return {
            "model": f"{variant}, {event.parameters:,} parameters, {sizes}",
            "target": f"{target}, {config.mask_ratio:.0%} masked; predicting zero gives a loss of "
            f"{event.zero_prediction_loss:.3f}",
        }
    names = ", ".join(shown(name, 20) for name in classification.classes[:6])
    more = ", ..." if len(classification.classes) > 6 else ""
    count = classification.held_out
    held_out = f"{count:,} held out to choose the epoch" if count else "none held out"
    return {
        "classes": f"{len(classification.classes):,} ({names}{more}); guessing gives a loss of "
        f"{event.zero_prediction_loss:.3f}",
        "other images": f"{held_out}, {classification.test_images:,} to test once, at the end",
        "model": f"width {model.embed_dim}, {model.depth} blocks, {model.num_heads} heads, {sizes}; "
        f"{classification.trained:,} of {event.parameters:,} parameters are trained, the head sees the "
        + ("mean of the patch tokens" if classification.pool == "mean" else "class token"),
        "start": classification.start,
        "augmentation": classification.augmentation,
    }


def helped_text(helped: bool) -> str:
    """Remark for a PSNR for which patches were un-normalised with the original's mean and std; else empty."""
    return " (helped by the original's mean and std)" if helped else ""


def psnr_text(psnr: float, *, helped: bool) -> str:
    """A PSNR as text, with the remark of ``helped_text``."""
    return f"PSNR {psnr:.1f} dB on masked patches{helped_text(helped)}"


def probed_text(event: Probed) -> str:
    """The measured values and durations as text."""
    parts = []
    if event.val_loss is not None:
        parts.append(f"held-out loss {event.val_loss:.4f} ({event.val_seconds:.1f} s)")
    if event.knn is not None and event.linear is not None and event.rank_me is not None:
        parts.append(
            f"k-NN {event.knn:.1%}, linear {event.linear:.1%}, RankMe {event.rank_me:.1f} ({event.probe_seconds:.1f} s)"
        )
    return ", ".join(parts)


def _probe_rows(event: Started) -> dict[str, str]:
    """Rows of the plan about measurements during training, and their fraction of the time."""
    plan = event.probes
    if plan is None:
        return {}
    rows = {}
    if plan.val_images:
        rows["validation"] = (
            f"loss of {plan.val_images:,} held-out images every epoch, {plan.val_seconds:.1f} s each time"
        )
    if plan.classes:
        rows["probes"] = (
            f"{plan.train_images:,} + {plan.test_images:,} images of {plan.classes:,} classes every "
            f"{'epoch' if plan.every == 1 else f'{plan.every} epochs'}, {plan.probe_seconds:.1f} s each time"
        )
    name = [*rows][-1]
    share = event.probe_seconds / event.seconds if event.seconds else 0.0
    rows[name] += f"; {'both' if len(rows) > 1 else 'that is'} {share:.1%} of the time"
    return rows


def duration(seconds: float) -> str:
    """A duration in its two largest units."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def show_plan(started: Started, output: Output) -> None:
    """Show a plan as the command's result, in rank 0 only."""
    if os.environ.get("RANK", "0") != "0":
        return
    output.result(
        lambda: _plan_document(started), lambda console: console.print(plan_panel(started)), round(started.seconds)
    )
    if not output.quiet:
        tell_plan(started, output)


def _plan_document(started: Started) -> dict[str, Any]:
    """The plan as JSON values; ``config`` has the names of a TOML file."""
    plan = started.plan
    return {
        "dry_run": True,
        "config": {name: value for name, value in started.config.as_plain().items() if value is not None},
        "model": dataclasses.asdict(started.model),
        "parameters": started.parameters,
        "plan": {
            "images": plan.images,
            "batch_size": plan.global_batch_size,
            "accum_iter": plan.accum_iter,
            "effective_batch": plan.effective_batch_size,
            "lr": plan.lr,
            "batches_per_epoch": plan.batches_per_epoch,
            "steps_per_epoch": plan.steps_per_epoch,
            "total_steps": plan.total_steps,
        },
        "skipped": started.skipped,
        "others": started.others,
        "device": started.device,
        "precision": started.precision,
        "precision_reason": started.precision_reason,
        "workers": started.workers,
        "processes": started.processes,
        "first_step": started.first_step,
        "zero_prediction_loss": started.zero_prediction_loss,
        "batch_seconds": started.step_seconds,
        "seconds": started.seconds,
        "warnings": [*started.warnings, *plan.warnings],
        "advice": [dataclasses.asdict(one) for one in started.advice],
        "notes": [*started.notes],
        "changes": [*started.changes],
        **({"classification": dataclasses.asdict(started.classification)} if started.classification else {}),
        "probes": dataclasses.asdict(started.probes) | {"seconds": started.probe_seconds} if started.probes else None,
    }
