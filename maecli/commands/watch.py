"""``maecli watch RUN``."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mae.io.text import shown
from mae.reporting.config import WatchConfig
from maecli.options import command_from
from maecli.output import Output, can_redraw, make_console, print_line

if TYPE_CHECKING:
    from mae.reporting.run_log import RunLog


@command_from(WatchConfig)
def watch(config: WatchConfig, output: Output) -> None:
    """Show a run's progress from another terminal; Ctrl-C stops watching, not the run.

    Examples:
      maecli watch run --once

      maecli watch runs/base
    """
    log = _follow(config, output)
    output.result(
        lambda: _document(config.run, log), lambda console: print_line(console, _text(config.run, log)), _loss(log)
    )


def _follow(config: WatchConfig, output: Output) -> RunLog:
    """Show the run each time its log has grown, until it is finished; return the newest log."""
    from mae.reporting.run_log import read_run

    size, log = _size(config.run), read_run(config.run)  # in this order, so that no line is missed
    if config.once or log.finished:
        return log
    redraw = can_redraw(sys.stderr) and not output.quiet
    with _screen() if redraw else nullcontext(output.say) as show:
        show(_text(config.run, log) if redraw else _line(log))
        while not log.finished:
            time.sleep(config.every)
            if (now := _size(config.run)) != size:
                size, log = now, read_run(config.run)
                show(_text(config.run, log) if redraw else _line(log))
    return log


@contextmanager
def _screen() -> Iterator[Callable[[str], None]]:
    """A few lines that are redrawn in place."""
    from rich.live import Live
    from rich.text import Text

    with Live(console=make_console(sys.stderr), auto_refresh=False, transient=True) as live:
        yield lambda text: live.update(Text(text), refresh=True)


def _size(run: Path) -> int:
    try:
        return (run / "log.jsonl").stat().st_size
    except OSError:
        return 0


def _facts(log: RunLog) -> dict[str, str]:
    from mae.reporting.runs import figure_text
    from maecli.views.progress import duration

    newest = log.steps[-1] if log.steps else None
    last = log.epochs[-1] if log.epochs else None
    rates = newest if newest and (not last or newest.epoch >= last.epoch) else last
    of = f" of {log.wanted_epochs:,}" if log.wanted_epochs else ""
    left = log.seconds_left()
    facts = {
        "epochs": figure_text(log.epochs_done) + of + (", finished" if log.finished else ""),
        "step": f"{newest.step:,}" if newest else "-",
        "loss": f"{_loss(log):.4f}" if math.isfinite(_loss(log)) else "-",
        "learning rate": f"{rates.lr:.2e}" if rates else "-",
        "images/s": f"{rates.images_per_second:,.0f}" if rates else "-",
        "waiting for data": f"{rates.data_wait:.0%}" if rates else "-",
        **({"PSNR": _psnr(log)} if log.command == "pretrain" else _accuracies(log)),
    }
    measured = {
        "held-out loss": ("val_loss", "{:.4f}"),
        "k-NN accuracy": ("knn", "{:.1%}"),
        "linear accuracy": ("linear", "{:.1%}"),
        "RankMe": ("rank_me", "{:.1f}"),
    }
    for title, (name, form) in measured.items():
        if math.isfinite(value := log.newest(name)):
            facts[title] = form.format(value)
    return facts | ({"left": f"about {duration(left)}"} if left and not log.finished else {})


def _accuracies(log: RunLog) -> dict[str, str]:
    """Held-out and test accuracy of a fine-tuning or linear probing run; empty for pre-training."""
    known = [one for one in log.validations if math.isfinite(one.accuracy)]
    best = max(known, key=lambda one: one.accuracy) if known else None
    newest = f"{known[-1].accuracy:.1%}" if known else "-"
    found = {
        "held-out accuracy": newest if best is None else f"{newest}, at best {best.accuracy:.1%} (epoch {best.epoch})"
    }
    test = log.test
    return found | ({"test accuracy": f"{test.accuracy:.1%}"} if test and math.isfinite(test.accuracy) else {})


def _psnr(log: RunLog) -> str:
    """PSNR of the newest preview as text."""
    from maecli.views.progress import helped_text

    if not (log.previews and math.isfinite(log.previews[-1].psnr)):
        return "-"
    return f"{log.previews[-1].psnr:.1f} dB{helped_text(log.psnr_uses_original)}"


def _text(run: Path, log: RunLog) -> str:
    facts = {"run": shown(run)} | _facts(log)
    return "\n".join(f"{name:<18}{value}" for name, value in facts.items())


def _line(log: RunLog) -> str:
    return "  ".join(f"{name} {value}" for name, value in _facts(log).items() if value != "-")


def _loss(log: RunLog) -> float:
    """The newest loss in the log."""
    if log.steps and (not log.epochs or log.steps[-1].epoch > log.epochs[-1].epoch):
        return log.steps[-1].loss
    return log.epochs[-1].loss if log.epochs else math.nan


def _document(run: Path, log: RunLog) -> dict[str, Any]:
    return {
        "run": str(run),
        "finished": log.finished,
        "epochs": log.epochs_done,
        "wanted_epochs": log.wanted_epochs,
        "step": log.steps[-1].step if log.steps else None,
        "loss": _loss(log),
        "psnr": log.previews[-1].psnr if log.previews else None,
        "val_accuracy": log.validations[-1].accuracy if log.validations else None,
        "test_accuracy": log.test.accuracy if log.test else None,
        "psnr_uses_original": log.psnr_uses_original,
        **{
            name: value if math.isfinite(value := log.newest(name)) else None
            for name in ("val_loss", "knn", "linear", "rank_me")
        },
        "seconds_left": log.seconds_left(),
    }
