"""``maecli pretrain DATA``."""

from __future__ import annotations

import os
import signal
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mae.io.text import shown
from mae.training.config import PretrainConfig, settings_of_resumed
from mae.training.presets import PRESETS
from maecli.options import command_from
from maecli.output import Output, as_document

if TYPE_CHECKING:
    from rich.console import Console

    from mae.training.events import PretrainResult, Started


SWITCHES = {"dry_run": "Print the plan, with what may be wrong with it, and stop; nothing is written."}
# SLURM announces a preemption by SIGUSR1 where it is asked to; Windows has none.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


def _written_config(config: PretrainConfig) -> Path | None:
    """Where a new run writes its settings; a resumed run already has them there."""
    return None if config.resume or config.auto_resume else config.out / "config.toml"


@command_from(
    PretrainConfig, toml=True, saved=settings_of_resumed, written=_written_config, presets=PRESETS, switches=SWITCHES
)
def pretrain(config: PretrainConfig, output: Output, *, dry_run: bool) -> None:
    """Train a masked autoencoder on a folder of images; labels are not needed.

    Examples:
      maecli pretrain sample_images --preset small --dry-run

      maecli pretrain photos --preset small --out runs/small

      maecli pretrain photos scans --batch-size 64 --accum-iter 8 --out runs/base

      maecli pretrain --resume runs/base
    """
    from mae.checkpoints.hub import announce_downloads
    from mae.training.pretrain import plan_run
    from mae.training.pretrain import pretrain as train
    from maecli.views.progress import TrainingView

    if dry_run:
        with announce_downloads(output.download), TrainingView(output) as view:
            _show_plan(plan_run(config, view), output)
        return
    stop = StopOnSignal()
    speaks = os.environ.get("RANK", "0") == "0"  # of several processes, one
    run = config.resume or config.out
    try:
        with stop, announce_downloads(output.download), TrainingView(output) as view:
            result = train(config, view, stop)
    except (KeyboardInterrupt, SystemExit):
        if stop.asked and speaks:
            output.note(
                f"stopped at once, without saving; resume the last state with: maecli pretrain --resume {shown(run)}"
            )
        raise
    if speaks:
        output.result(lambda: _document(result), lambda console: _show(console, result), result.checkpoint)
        if result.stopped:
            output.note(f"stopped and saved; resume with: maecli pretrain --resume {shown(result.run)}")
        if result.was_finished:
            output.note(
                f"{shown(result.run)} is finished, so nothing was done; to make it longer: "
                f"maecli pretrain --resume {shown(result.run)} --epochs N, with N above {result.epochs}"
            )
    if result.stopped:
        raise typer.Exit(128 + (stop.number or signal.SIGTERM))


class StopOnSignal:
    """The first Ctrl-C, SIGTERM or SIGUSR1 finishes the step and saves; the second ends at once.

    Attributes:
        number: The signal that came; 0 while none has.
        asked: Whether training has begun to ask; before, there is nothing to save, so the first one ends at once.
    """

    def __init__(self) -> None:
        self.number = 0
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopOnSignal:
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        """Whether a signal came."""
        self.asked = True
        return self.number != 0

    def _on_signal(self, number: int, frame: types.FrameType | None) -> None:
        if self.number or not self.asked:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            raise SystemExit(128 + number)
        self.number = number


def _document(result: PretrainResult) -> dict[str, Any]:
    return as_document(result) | {"learnt": result.learnt}


def _show_plan(started: Started, output: Output) -> None:
    """A plan as the result; of several processes, one shows it."""
    from maecli.views.progress import plan_panel, tell_plan

    if os.environ.get("RANK", "0") != "0":
        return
    output.result(
        lambda: _plan_document(started), lambda console: console.print(plan_panel(started)), round(started.seconds)
    )
    if not output.quiet:
        tell_plan(started, output)


def _plan_document(started: Started) -> dict[str, Any]:
    """The plan as JSON has it; ``config`` under the names of a TOML file."""
    import dataclasses

    plan = dataclasses.asdict(started.plan)
    return {
        "dry_run": True,
        "config": {name: value for name, value in started.config.as_plain().items() if value is not None},
        "model": dataclasses.asdict(started.model),
        "parameters": started.parameters,
        "plan": {name: value for name, value in plan.items() if name not in ("warnings", "images_digest")},
        "skipped": started.skipped,
        "others": started.others,
        "device": started.device,
        "precision": started.precision,
        "workers": started.workers,
        "processes": started.processes,
        "first_step": started.first_step,
        "zero_prediction_loss": started.zero_prediction_loss,
        "batch_seconds": started.step_seconds,
        "seconds": started.seconds,
        "warnings": [*started.warnings, *started.plan.warnings],
        "advice": [dataclasses.asdict(one) for one in started.advice],
        "notes": [*started.notes],
        "changes": [*started.changes],
    }


def _show(console: Console, result: PretrainResult) -> None:
    from maecli.views.progress import duration, psnr_text

    took = "" if result.was_finished else f" in {duration(result.seconds)}"
    parts = [f"{result.epochs} epochs, {result.steps:,} steps{took}"]
    if result.train_loss is not None:
        zero = result.zero_prediction_loss
        parts.append(f"loss {result.train_loss:.4f}" + (f", where predicting zero costs {zero:.4f}" if zero else ""))
    if result.psnr is not None:
        parts.append(psnr_text(result.psnr, helped=result.psnr_uses_original))
    console.print("; ".join(parts), soft_wrap=True)
    console.print(f"checkpoint  {result.checkpoint}", soft_wrap=True)
    if result.preview:
        console.print(f"image     {result.preview}", soft_wrap=True)
    if result.cache_hits is not None:
        console.print(f"cache       {result.cache_hits:.0%} of the last epoch's images were in it", soft_wrap=True)
    if result.learnt is False:
        console.print(
            "The model has learnt almost nothing: train for more steps (--epochs) or at a higher learning rate (--lr).",
            soft_wrap=True,
        )
