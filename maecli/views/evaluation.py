"""The table of ``maecli evaluate``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mae.evaluation.results import filled_columns, percent, row_cells, view_name
from mae.io.text import shown
from maecli.output import fitted, plain_table, print_line

if TYPE_CHECKING:
    from rich.console import Console

    from mae.evaluation.results import EvaluateResult


def show(console: Console, result: EvaluateResult) -> None:
    """Print a table for each fraction of the labels, then the headline result."""
    console.print(
        f"{result.train_images:,} training and {result.test_images:,} test images, {len(result.classes):,} classes; "
        "accuracy on the test images in %, ± half of its 95 % interval",
        soft_wrap=True,
    )
    for number in range(len(result.rows[0].scores)):
        _table(console, result, number)
    if result.headline is not None:
        one = result.headline
        print_line(
            console,
            f"{shown(one.subject)}: linear {percent(one.linear)} % on {view_name(one.pool, one.feature_norm)}, best on "
            f"held-out training images; mean over classes {100 * one.mean_class_accuracy:.1f} %",
        )
    seconds = result.seconds
    console.print(
        f"forward passes {seconds.forward:.1f} s, features in all {seconds.features:.1f} s, "
        f"probes {seconds.probes:.1f} s"
    )
    if result.report is not None:
        print_line(console, f"wrote {shown(result.report)}")


def _table(console: Console, result: EvaluateResult, number: int) -> None:
    from rich.text import Text

    share = result.rows[0].scores[number]
    if len(result.rows[0].scores) > 1:
        console.print()
        labels = f"{share.label_fraction * 100:.3g} % of the labels: {share.train_images:,} images"
        console.print(Text(labels, style="bold"))
    titles, rows = filled_columns(
        ("features", "numbers", f"k-NN ({result.shown_k})", "linear", "attentive", "RankMe", "alpha"),
        [row_cells(row, number, [result.shown_k]) for row in result.rows],
    )
    table = plain_table(titles[0], right=titles[1:])
    for name, *cells in rows:
        table.add_row(Text(name), *cells)
    console.print(fitted(console, table))
