"""``maecli predict IMAGE...``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mae.evaluation.config import PredictConfig
from mae.io.text import shown
from maecli.options import command_from
from maecli.output import Output, as_document, fitted, plain_table, print_line

if TYPE_CHECKING:
    from rich.console import Console

    from mae.evaluation.predict import PredictResult


@command_from(PredictConfig)
def predict(config: PredictConfig, output: Output) -> None:
    """Name the classes of images with a fine-tuned classifier.

    Examples:
      maecli predict cat.jpg --checkpoint finetuned

      maecli predict photos --checkpoint finetuned --top-k 3 --out predictions.csv

      maecli predict cat.jpg --checkpoint finetuned --json
    """
    from mae.checkpoints.hub import announce_downloads
    from mae.evaluation.predict import predict as use_case
    from maecli.views.counting import CountingView

    with announce_downloads(output.download), CountingView(output) as view:
        result = use_case(config, view)
    first = "\n".join(shown(one.classes[0][0]) for one in result.predictions)  # a line each
    output.show(result, _show, result.out or first, _document)


def _document(result: PredictResult) -> dict[str, Any]:
    predictions = [
        {"image": one.image, "classes": [{"class": name, "probability": share} for name, share in one.classes]}
        for one in result.predictions
    ]
    return as_document(result) | {"predictions": predictions}


def _show(console: Console, result: PredictResult) -> None:
    from rich.text import Text

    table = plain_table(show_header=False)
    table.add_column("image", overflow="fold")
    table.add_column("classes", overflow="fold")
    for one in result.predictions:
        named = ", ".join(f"{shown(name, 40)} {share:.1%}" for name, share in one.classes)
        table.add_row(Text(shown(one.image)), Text(named))
    console.print(fitted(console, table))
    if result.images > len(result.predictions):
        console.print(f"and {result.images - len(result.predictions):,} more")
    if result.out is not None:
        print_line(console, f"wrote {shown(result.out)}")
