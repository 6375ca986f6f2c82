"""The result of ``evaluate`` as a self-contained HTML page."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Any

from mae.evaluation.gallery import Gallery
from mae.evaluation.results import EvaluateResult, Headline, filled_columns, percent, row_cells, view_name
from mae.reporting.render import LONGEST_TEXT, render, time_text

MOST_CONFUSED = 30  # largest number of classes with a confusion matrix; else frequent confusions are listed
MOST_CLASSES = 200  # rows of the table of classes
MOST_NAMES = 24  # largest number of classes in the legend


def page(result: EvaluateResult, gallery: Gallery, view: str, now: float) -> str:
    """The page as HTML.

    Args:
        result: The result.
        gallery: Images for one view of the first checkpoint.
        view: Name of that view.
        now: Time of writing, seconds since 1970.
    """
    headline = result.headline
    return render(
        Path(__file__).with_name("page.html"),
        name=result.data.name or str(result.data),
        standing=_standing(result, now),
        notes=result.notes,
        headline=headline,
        tiles=_tiles(headline) if headline else {},
        tables=[_table(result, number) for number in range(len(result.rows[0].scores))],
        view=view,
        gallery=gallery,
        classes=result.classes,
        worst=_worst(headline) if headline else [],
        pairs=_pairs(headline) if headline and len(headline.classes) > MOST_CONFUSED else None,
        skipped=result.skipped,
        file_name=lambda name: PurePath(name).name,  # the page does not show the user's folders
        most_names=MOST_NAMES,
        most_classes=MOST_CLASSES,
        most_confused=MOST_CONFUSED,
    )


def _standing(result: EvaluateResult, now: float) -> str:
    return (
        f"{result.train_images:,} training and {result.test_images:,} test images, {len(result.classes):,} classes; "
        f"frozen features, {result.precision} on {result.device}; made {time_text(now)} by maecli evaluate"
    )


def _tiles(headline: Headline) -> dict[str, str]:
    return {
        "linear accuracy": percent(headline.linear),
        "mean over classes": f"{100 * headline.mean_class_accuracy:.1f} %",
        "features": view_name(headline.pool, headline.feature_norm),
        "checkpoint": headline.subject[-LONGEST_TEXT:],
    }


def _table(result: EvaluateResult, number: int) -> dict[str, Any]:
    ks = sorted({k for row in result.rows for scores in row.scores for k in scores.knn or ()})
    first = result.rows[0].scores[number]
    titles, rows = filled_columns(
        ("features", "numbers", *(f"k-NN, {k}" for k in ks), "linear", "attentive", "RankMe", "alpha"),
        [row_cells(row, number, ks) for row in result.rows],
    )
    return {
        "caption": f"{first.label_fraction * 100:.3g} % of the labels, {first.train_images:,} images; accuracy in %, "
        "± half of its 95 % interval",
        "titles": titles,
        "rows": [
            {"reference": row.kind != "checkpoint", "cells": cells}
            for row, cells in zip(result.rows, rows, strict=True)
        ],
    }


def _worst(headline: Headline) -> list[dict[str, Any]]:
    worst = sorted(headline.classes, key=lambda one: one.test.value)
    return [{"reference": False, "cells": (one.name, f"{one.test_images:,}", percent(one.test))} for one in worst]


def _pairs(headline: Headline) -> list[dict[str, Any]]:
    """The most frequent confusions, for many classes."""
    pairs = sorted(
        (
            (count, row, column)
            for row, counts in enumerate(headline.confusion)
            for column, count in enumerate(counts)
            if row != column and count
        ),
        key=lambda pair: -pair[0],
    )
    names = [one.name for one in headline.classes]
    return [
        {"reference": False, "cells": (names[row], names[column], f"{count:,}")}
        for count, row, column in pairs[:MOST_CONFUSED]
    ]
