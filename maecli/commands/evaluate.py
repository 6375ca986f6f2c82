"""``maecli evaluate DATA``."""

from __future__ import annotations

from typing import Any

from mae.evaluation.config import EvaluateConfig
from maecli.options import command_from
from maecli.output import Output


@command_from(EvaluateConfig)
def evaluate(config: EvaluateConfig, output: Output) -> None:
    """Evaluate frozen features on labelled images: k-NN, linear and attentive probes, label-free metrics.

    Examples:
      maecli evaluate flowers --checkpoint run/checkpoint-last.pth

      maecli evaluate flowers --label-fraction '0.1 1' --report flowers.html

      maecli evaluate flowers --checkpoint before.pth --checkpoint after.pth --probe knn --json
    """
    from mae.checkpoints.hub import announce_downloads
    from mae.evaluation.evaluate import evaluate as use_case
    from maecli.views.counting import CountingView
    from maecli.views.evaluation import show

    with announce_downloads(output.download), CountingView(output) as view:
        result = use_case(config, view)
    first = result.headline.linear if result.headline else _first(result)
    output.show(result, show, f"{first.value:.4f}" if first else "")


def _first(result: Any) -> Any:
    """The first row's accuracy by any other probe, if the linear probe was not run."""
    scores = result.rows[0].scores[-1]
    if scores.knn:
        return scores.knn[min(scores.knn, key=lambda k: abs(k - 20))]
    return next((row.scores[-1].attentive.test for row in result.rows if row.scores[-1].attentive), None)
