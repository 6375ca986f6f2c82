"""``maecli report RUN ...``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mae.io.text import counted, shown
from mae.reporting.config import ReportConfig
from maecli.options import command_from
from maecli.output import Output, print_line

if TYPE_CHECKING:
    from rich.console import Console

    from mae.reporting.run import ComparisonResult, ReportResult


@command_from(ReportConfig)
def report(config: ReportConfig, output: Output) -> None:
    """Write an HTML report of a run: loss curves, reconstructions over time, speed, settings, hardware.

    The run may be finished, still training or just started; the file needs no network and no other file. Of several
    runs the page shows the curves over each other, the settings that differ, and the last reconstructions.

    Examples:
      maecli report run

      maecli report runs/base --out base.html --images 20

      maecli report run runs/base --out compared.html
    """
    from mae.reporting.run import report as use_case

    result = use_case(config)
    output.show(result, _show, result.out)


def _show(console: Console, result: ReportResult | ComparisonResult) -> None:
    from mae.reporting.run import ReportResult

    if isinstance(result, ReportResult):
        of = f"{result.epochs:,} of " if result.wanted_epochs else ""
        epochs = of + counted(result.wanted_epochs or result.epochs, "epoch")
        known = result.first_loss and result.last_loss
        loss = f", loss {result.first_loss:.4f} -> {result.last_loss:.4f}" if known else ""
        waits = [value for value in (result.first_data_wait, result.data_wait) if value is not None]
        wait = f", waiting for images {waits[0]:.0%} -> {waits[1]:.0%} of the time" if len(waits) == 2 else ""
        console.print(f"{epochs}{loss}{wait}", soft_wrap=True)
    else:
        from maecli.views.runs import runs_table

        runs_table(console, result.runs)
        names = ", ".join(result.settings) or "none"
        print_line(console, f"settings that differ: {names}")
    print_line(
        console, f"wrote {shown(result.out)}: {result.size_bytes / 1e6:.2f} MB, {counted(result.images, 'image')}"
    )
    if isinstance(result, ReportResult) and result.animation is not None:
        print_line(console, f"wrote {shown(result.animation)}")
