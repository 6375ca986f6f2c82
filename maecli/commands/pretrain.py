"""``maecli pretrain DATA``."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mae.io.text import shown
from mae.training.config import PretrainConfig, settings_of_resumed
from mae.training.presets import PRESETS
from maecli.options import command_from
from maecli.output import Output, as_document
from maecli.stopping import StopOnSignal

if TYPE_CHECKING:
    from rich.console import Console

    from mae.training.classifier_config import ClassifierConfig
    from mae.training.events import PretrainResult


SWITCHES = {"dry_run": "Print the plan, with what may be wrong with it, and stop; nothing is written."}


def written_config(config: PretrainConfig | ClassifierConfig) -> Path | None:
    """Where a new run writes its settings; a resumed run already has them there."""
    return None if config.resume or config.auto_resume else config.out / "config.toml"


@command_from(
    PretrainConfig, toml=True, saved=settings_of_resumed, written=written_config, presets=PRESETS, switches=SWITCHES
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
    from maecli.views.progress import TrainingView, show_plan

    if dry_run:
        with announce_downloads(output.download), TrainingView(output) as view:
            show_plan(plan_run(config, view), output)
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


def _document(result: PretrainResult) -> dict[str, Any]:
    return as_document(result) | {"learnt": result.learnt}


def _measured(result: PretrainResult) -> str:
    named = {"held-out loss": (result.val_loss, "{:.4f}"), "k-NN": (result.knn, "{:.1%}")}
    named |= {"linear": (result.linear, "{:.1%}"), "RankMe": (result.rank_me, "{:.1f}")}
    return ", ".join(f"{name} {form.format(value)}" for name, (value, form) in named.items() if value is not None)


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
    if measured := _measured(result):
        console.print(f"measured    {measured}", soft_wrap=True)
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
