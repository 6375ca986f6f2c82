"""The table of ``maecli evaluate``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mae.evaluation.results import filled_columns, percent, row_name, view_name
from mae.io.text import shown
from maecli.output import fitted

if TYPE_CHECKING:
    from rich.console import Console

    from mae.evaluation.results import EvaluateResult, Row, Scores


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
        console.print(
            f"{shown(one.subject)}: linear {percent(one.linear)} % on {view_name(one.pool, one.feature_norm)}, best on "
            f"held-out training images; mean over classes {100 * one.mean_class_accuracy:.1f} %",
            soft_wrap=True,
            markup=False,
        )
    seconds = result.seconds
    console.print(
        f"forward passes {seconds.forward:.1f} s, features in all {seconds.features:.1f} s, "
        f"probes {seconds.probes:.1f} s"
    )
    if result.report is not None:
        console.print(f"wrote {shown(result.report)}", soft_wrap=True, markup=False)


def _table(console: Console, result: EvaluateResult, number: int) -> None:
    from rich.table import Table
    from rich.text import Text

    share = result.rows[0].scores[number]
    if len(result.rows[0].scores) > 1:
        console.print()
        console.print(Text(f"{share.label_fraction:g} of the labels: {share.train_images:,} images", style="bold"))
    table = Table(box=None, padding=(0, 2), pad_edge=False)
    titles, rows = filled_columns(
        ("features", "numbers", f"k-NN ({result.shown_k})", "linear", "attentive", "RankMe", "alpha"),
        [_cells(row, row.scores[number], result.shown_k) for row in result.rows],
    )
    table.add_column(titles[0])
    for title in titles[1:]:
        table.add_column(title, justify="right")
    for name, *cells in rows:
        table.add_row(Text(name), *cells)
    console.print(fitted(console, table))


def _cells(row: Row, scores: Scores, k: int) -> list[str]:
    return [
        row_name(row),
        f"{row.dimensions:,}",
        percent(scores.knn[k]) if scores.knn and k in scores.knn else "",
        percent(scores.linear.test) if scores.linear else "",
        percent(scores.attentive.test) if scores.attentive else "",
        f"{row.rank_me:.1f}" if row.rank_me is not None else "",
        f"{row.alpha_req:.2f}" if row.alpha_req is not None else "",
    ]
