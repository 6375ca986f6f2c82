"""Runs the training commands: plan, progress, stopping, and the result in a terminal."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from mae.evaluation.results import percent
from mae.io.text import a_few, counted, shown, typed
from maecli.output import Output, as_document, fitted, plain_table, print_line, warn_skipped
from maecli.stopping import StopOnSignal
from maecli.views.progress import TrainingView, duration, psnr_text, show_plan

if TYPE_CHECKING:
    from rich.console import Console

    from mae.training.classifying import ClassifierResult
    from mae.training.engine import TaskType
    from mae.training.events import PretrainResult

    Result = TypeVar("Result", bound=PretrainResult | ClassifierResult)

MOST_CLASSES = 20  # largest number of classes to show, the least accurate first


def run_training(
    config: Any,
    output: Output,
    train: Callable[..., Result],
    planned: TaskType[Any] | None,
    show: Callable[[Result, Output], None],
) -> None:
    """Train and show the result, or show only the plan.

    Args:
        config: All settings.
        output: Output of the command.
        train: The training use case.
        planned: The kind of training whose plan ``--dry-run`` shows; None to train.
        show: Shows the result of training; called in rank 0 only.
    """
    from mae.checkpoints.hub import announce_downloads

    if planned is not None:
        from mae.training.engine import plan_task

        with announce_downloads(output.download), TrainingView(output) as view:
            show_plan(plan_task(planned, config, view), output)
        return
    stop = StopOnSignal()
    speaks = os.environ.get("RANK", "0") == "0"  # only rank 0 prints
    again = f"maecli {config.command} --resume {typed(config.resume or config.out)}"
    try:
        with stop, announce_downloads(output.download), TrainingView(output) as view:
            result = train(config, view, stop)
    except (KeyboardInterrupt, SystemExit):
        if stop.asked and speaks:
            output.note(f"stopped at once, without saving; resume the last state with: {again}")
        raise
    if speaks:
        show(result, output)
        if result.stopped:
            output.note(f"stopped and saved; resume with: {again}")
        if result.was_finished:
            output.note(
                f"{shown(result.run)} is finished, so nothing was done; to make it longer: {again} --epochs N, with N "
                f"above {result.epochs}"
            )
    if result.stopped:
        raise typer.Exit(128 + (stop.number or signal.SIGTERM))


def show_pretraining(result: PretrainResult, output: Output) -> None:
    """The result of ``pretrain``."""
    document = as_document(result) | {"learnt": result.learnt}
    output.result(lambda: document, lambda console: _show_pretraining(console, result), result.checkpoint)


def show_classifier(result: ClassifierResult, output: Output) -> None:
    """The result of ``finetune`` and ``linprobe``."""
    value = f"{result.test.top1.value:.4f}" if result.test else result.checkpoint
    output.result(lambda: as_document(result), lambda console: _show_classifier(console, result), value)
    if result.test:
        warn_skipped(output, result.test.skipped)
        if result.test.untested:
            output.warn(f"no test image could be read of {a_few(result.test.untested)}: what is told is of the others")


def _show_pretraining(console: Console, result: PretrainResult) -> None:
    took = "" if result.was_finished else f" in {duration(result.seconds)}"
    parts = [f"{counted(result.epochs, 'epoch')}, {counted(result.steps, 'step')}{took}"]
    if result.train_loss is not None:
        zero = result.zero_prediction_loss
        parts.append(f"loss {result.train_loss:.4f}" + (f", where predicting zero costs {zero:.4f}" if zero else ""))
    if result.psnr is not None:
        parts.append(psnr_text(result.psnr, helped=result.psnr_uses_original))
    console.print("; ".join(parts), soft_wrap=True)
    if measured := _measured(result):
        console.print(f"measured    {measured}", soft_wrap=True)
    _show_waiting(console, result)
    print_line(console, f"checkpoint  {shown(result.checkpoint)}")
    if result.preview:
        print_line(console, f"image       {shown(result.preview)}")
    if result.cache_hits is not None:
        why = "" if result.cache_hits else "; JPEGs that can be decoded at a reduced size are not kept"
        console.print(f"cache       {result.cache_hits:.0%} of the last epoch's images were in it{why}", soft_wrap=True)
    if result.learnt is False:
        console.print(
            "The model has learnt almost nothing: train for more steps (--epochs) or at a higher learning rate (--lr).",
            soft_wrap=True,
        )


def _measured(result: PretrainResult) -> str:
    named = {"held-out loss": (result.val_loss, "{:.4f}"), "k-NN": (result.knn, "{:.1%}")}
    named |= {"linear": (result.linear, "{:.1%}"), "RankMe": (result.rank_me, "{:.1f}")}
    return ", ".join(f"{name} {form.format(value)}" for name, (value, form) in named.items() if value is not None)


def _show_classifier(console: Console, result: ClassifierResult) -> None:
    took = "" if result.was_finished else f" in {duration(result.seconds)}"
    parts = [f"{counted(result.epochs, 'epoch')}, {counted(result.steps, 'step')}{took}"]
    if result.train_loss is not None:
        parts.append(f"loss {result.train_loss:.4f}")
    if result.held_out_accuracy is not None:
        parts.append(f"held-out accuracy {result.held_out_accuracy:.1%} at best")
    console.print("; ".join(parts), soft_wrap=True)
    if result.test is not None:
        _show_test(console, result)
    _show_waiting(console, result)
    print_line(console, f"checkpoint  {shown(result.checkpoint)}")


def _show_waiting(console: Console, result: PretrainResult | ClassifierResult) -> None:
    wait, first = result.data_wait, result.first_data_wait
    if wait is not None and first is not None:
        console.print(f"waiting     {wait:.0%} of the time, for images; {first:.0%} in the first epoch", soft_wrap=True)


def _show_test(console: Console, result: ClassifierResult) -> None:
    from rich.text import Text

    test = result.test
    assert test is not None
    top5 = f", top-5 {percent(test.top5)} %" if test.top5 else ""
    console.print(
        f"{test.test_images:,} test images, read once, by the weights of epoch {test.chosen_epoch}: "
        f"accuracy {percent(test.top1)} %{top5}; mean over classes {100 * test.mean_class_accuracy:.1f} %",
        soft_wrap=True,
    )
    worst = sorted(test.classes, key=lambda one: one.test.value)[:MOST_CLASSES]
    table = plain_table("class", right=("test images", "accuracy, %"))
    for one in worst:
        table.add_row(Text(shown(one.name, 40)), f"{one.test_images:,}", percent(one.test))
    console.print(fitted(console, table))
    if len(test.classes) > len(worst):
        console.print(f"and {len(test.classes) - len(worst):,} classes with higher accuracy, in result.json")
