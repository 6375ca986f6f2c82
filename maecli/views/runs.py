"""The table of ``maecli runs``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mae.io.text import shown
from maecli.output import fitted, plain_table
from maecli.views.progress import duration

if TYPE_CHECKING:
    from rich.console import Console

    from mae.reporting.runs import RunSummary

_STYLES = {"training": "green", "finished": "", "stopped": "yellow", "unknown": "yellow"}


def runs_table(console: Console, runs: Sequence[RunSummary]) -> None:
    """One row a run."""
    from rich.text import Text

    from mae.reporting.runs import accuracies, summary_cells

    measured = accuracies(runs)
    right = ("epochs", "loss", "PSNR", *measured.values(), "images/s", "left", "last line")
    table = plain_table("run", "state", "model", right=right)
    now = time.time()
    for one in runs:
        table.add_row(
            Text(shown(one.run)),
            Text(one.trouble or one.state, style=_STYLES[one.state]),
            Text(shown(one.model or "-", 40)),
            *summary_cells(one, measured, "/"),
            f"{duration(one.seconds_left)}" if one.seconds_left and one.state == "training" else "-",
            f"{duration(max(0.0, now - one.last_line))} ago" if one.last_line is not None else "-",
        )
    console.print(fitted(console, table))
