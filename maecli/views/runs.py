"""The table of ``maecli runs``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mae.io.text import shown
from maecli.output import fitted
from maecli.views.progress import duration

if TYPE_CHECKING:
    from rich.console import Console

    from mae.reporting.runs import RunSummary

_STYLES = {"training": "green", "finished": "", "stopped": "yellow", "unknown": "yellow"}


def runs_table(console: Console, runs: Sequence[RunSummary]) -> None:
    """One row a run."""
    from rich.table import Table
    from rich.text import Text

    from mae.reporting.runs import accuracies

    table = Table(box=None, padding=(0, 2), pad_edge=False)
    table.add_column("run")
    table.add_column("state")
    table.add_column("model")
    measured = accuracies(runs)
    for title in ("epochs", "loss", "PSNR", *measured.values(), "images/s", "left", "last line"):
        table.add_column(title, justify="right")
    now = time.time()
    for one in runs:
        of = f"/{one.wanted_epochs:,}" if one.wanted_epochs else ""
        table.add_row(
            Text(shown(one.run)),
            Text(one.trouble or one.state, style=_STYLES[one.state]),
            Text(shown(one.model or "-", 40)),
            f"{one.epochs:,.4g}{of}",
            _known(one.loss, "{:.4f}"),
            _known(one.psnr, "{:.1f} dB"),
            *(_known(getattr(one, name), "{:.1%}") for name in measured),
            _known(one.images_per_second, "{:,.0f}"),
            f"{duration(one.seconds_left)}" if one.seconds_left and one.state == "training" else "-",
            f"{duration(max(0.0, now - one.last_line))} ago" if one.last_line is not None else "-",
        )
    console.print(fitted(console, table))


def _known(value: float | None, how: str) -> str:
    return how.format(value) if value is not None else "-"
