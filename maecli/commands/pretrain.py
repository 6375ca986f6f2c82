"""``maecli pretrain DATA``."""

from __future__ import annotations

import os
import signal
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mae.errors import ConfigError
from mae.files import shown
from mae.training.config import PretrainConfig, read_run_settings
from maecli.options import command_from
from maecli.output import Output, as_document

if TYPE_CHECKING:
    from rich.console import Console

    from mae.training.events import PretrainResult


# SLURM announces a preemption by SIGUSR1 where it is asked to; Windows has none.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


def _saved_config(typed: dict[str, Any]) -> dict[str, Any]:
    """A resumed run has its settings in its folder."""
    if not typed.get("resume"):
        return {}
    run = Path(typed["resume"])
    if typed.get("out") and os.path.realpath(typed["out"]) != os.path.realpath(run):
        raise ConfigError(
            f"--resume {shown(run)} goes on in its own folder, not in --out {shown(typed['out'])}",
            hint=f"leave --out out; --init {shown(run / 'checkpoint-last.pth')} starts a new run from the weights",
        )
    return read_run_settings(run)


def _written_config(config: PretrainConfig) -> Path | None:
    """Where a new run writes its settings down; one that goes on has them there already."""
    return None if config.resume or config.auto_resume else config.out / "config.toml"


@command_from(PretrainConfig, toml=True, saved=_saved_config, written=_written_config)
def pretrain(config: PretrainConfig, output: Output) -> None:
    """Train a masked autoencoder on a folder of pictures; labels are not needed.

    Examples:
      maecli pretrain sample_images --variant vit_tiny --image-size 64 --patch-size 8 --epochs 100

      maecli pretrain photos scans --batch-size 64 --accum-iter 8 --out runs/base

      maecli pretrain --resume runs/base
    """
    from mae.checkpoints.download import announce_downloads
    from mae.training.pretrain import pretrain as train
    from maecli.progress import TrainingView

    stop = StopOnSignal()
    speaks = os.environ.get("RANK", "0") == "0"  # of several processes, one
    run = config.resume or config.out
    try:
        with stop, announce_downloads(output.download), TrainingView(output) as view:
            result = train(config, view, stop)
    except (KeyboardInterrupt, SystemExit):
        if stop.asked and speaks:
            output.note(
                f"left at once, without saving; go on from the last save with: maecli pretrain --resume {shown(run)}"
            )
        raise
    if speaks:
        output.result(lambda: as_document(result), lambda console: _show(console, result), result.checkpoint)
        if result.stopped:
            output.note(f"stopped and saved; go on with: maecli pretrain --resume {shown(result.run)}")
        if result.was_finished:
            output.note(
                f"{shown(result.run)} is finished, so nothing was done; to make it longer: "
                f"maecli pretrain --resume {shown(result.run)} --epochs N, with N above {result.epochs}"
            )
    if result.stopped:
        raise typer.Exit(128 + (stop.number or signal.SIGTERM))


class StopOnSignal:
    """The first Ctrl-C, SIGTERM or SIGUSR1 lets the step end and its state be saved; the second ends at once.

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


def _show(console: Console, result: PretrainResult) -> None:
    from maecli.progress import duration

    loss = f": loss {result.train_loss:.4f}" if result.train_loss is not None else ""
    psnr = f", PSNR {result.psnr:.1f} dB on removed patches" if result.psnr is not None else ""
    took = "" if result.was_finished else f" in {duration(result.seconds)}"
    console.print(f"{result.epochs} epochs, {result.steps:,} steps{took}{loss}{psnr}", soft_wrap=True)
    console.print(f"checkpoint  {result.checkpoint}", soft_wrap=True)
    if result.preview:
        console.print(f"picture     {result.preview}", soft_wrap=True)
    if result.cache_hits is not None:
        console.print(f"cache       {result.cache_hits:.0%} of the last epoch's images were in it", soft_wrap=True)
