"""Results of ``evaluate`` as plain values, and their names. Standard library only."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mae.io.notebook import DrawnPage, Table
from mae.io.text import shown

HEADLINE_K = 20  # tables show the number of neighbours nearest to this one, which DINO and DINOv2 use


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Fraction of test images that are classified correctly, with Wilson's 95 % interval.

    Attributes:
        value: From 0 to 1.
        low, high: Bounds of the 95 % confidence interval, which assumes that the test images are a random sample.
    """

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Linear:
    """The linear probe: its accuracy, and how its penalty was chosen."""

    test: Accuracy
    penalty: float
    held_out: float | None


@dataclasses.dataclass(frozen=True)
class Attentive:
    """The attentive probe: its accuracy, and how its head was chosen."""

    test: Accuracy
    lr: float
    weight_decay: float
    held_out: float | None
    train_images: int
    test_images: int


@dataclasses.dataclass(frozen=True)
class Scores:
    """Accuracies with a fraction of the labels; None for probes that were not run.

    Attributes:
        label_fraction: Fraction of the labels.
        train_images: Number of training images used.
        knn: Accuracy of k-NN by number of neighbours.
    """

    label_fraction: float
    train_images: int
    knn: dict[int, Accuracy] | None
    linear: Linear | None
    attentive: Attentive | None


@dataclasses.dataclass(frozen=True)
class Row:
    """The results of one kind of features.

    Attributes:
        subject: Name of the checkpoint, "untrained", or the kind of pixels.
        kind: "checkpoint", "untrained" or "pixels".
        pool, feature_norm: Pooling and norm of an encoder's output; None for pixels.
        dimensions: Length of a feature vector.
        rank_me, alpha_req: Metrics of the training images' features; None for patches.
        scores: Accuracies for each fraction of the labels.
    """

    subject: str
    kind: str
    pool: str | None
    feature_norm: str | None
    dimensions: int
    rank_me: float | None
    alpha_req: float | None
    scores: tuple[Scores, ...]


@dataclasses.dataclass(frozen=True)
class ClassAccuracy:
    """Accuracy of the test images of one class."""

    name: str
    test_images: int
    test: Accuracy


@dataclasses.dataclass(frozen=True)
class Headline:
    """The linear probe of the first checkpoint, on the view that was best on held-out training images.

    Attributes:
        subject, pool, feature_norm: The features, as in ``Row``.
        linear: Accuracy with the largest label fraction.
        mean_class_accuracy: Mean of the accuracies of the classes.
        classes: Accuracy of each class, in order.
        confusion: Number of test images by [true class][predicted class]; empty for more than 1,000 classes.
    """

    subject: str
    pool: str
    feature_norm: str
    linear: Accuracy
    mean_class_accuracy: float
    classes: tuple[ClassAccuracy, ...]
    confusion: tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Seconds spent in forward passes, in computing features (forward passes included), and in probes."""

    forward: float
    features: float
    probes: float


@dataclasses.dataclass(frozen=True)
class EvaluateResult(DrawnPage):
    """Result of ``evaluate``; a notebook shows the accuracies with the largest label fraction.

    Attributes:
        data: Path of the labelled images.
        train_images, test_images: Numbers of readable images.
        classes: Names of the classes.
        split: Origin of the split: "folders" or "seed".
        precision, device: Precision and device of the encoders.
        rows: Results, one row per kind of features.
        headline: The main result; None without the linear probe.
        report: The written HTML page; None if none was requested.
        seconds: Time spent in each stage; cached features take none.
        skipped: (name, reason) of images that could not be read.
        notes: Messages for the user.
    """

    data: Path
    train_images: int
    test_images: int
    classes: tuple[str, ...]
    split: str
    precision: str
    device: str
    rows: tuple[Row, ...]
    headline: Headline | None
    report: Path | None
    seconds: Seconds
    skipped: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]

    @property
    def shown_k(self) -> int:
        """The number of neighbours that tables show."""
        ks = [k for row in self.rows for scores in row.scores for k in scores.knn or ()]
        return nearest_k(ks) if ks else HEADLINE_K

    def _table(self) -> Table:
        rows = []
        for row in self.rows:
            scores = row.scores[-1]
            found = (
                scores.knn and scores.knn.get(self.shown_k),
                scores.linear and scores.linear.test,
                scores.attentive and scores.attentive.test,
            )
            rows.append((row_name(row), *(one and percent(one) for one in found)))
        titles, filled = filled_columns(("features", f"k-NN ({self.shown_k})", "linear", "attentive"), rows)
        return Table(
            f"accuracy on {self.test_images:,} test images of {len(self.classes):,} classes, %", filled, titles
        )


def filled_columns(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> tuple[list[str], list[list[Any]]]:
    """Titles and rows of a table without the columns that are empty, such as those of probes that were not run."""
    filled = [column for column in range(len(titles)) if any(row[column] for row in rows)]
    return [titles[column] for column in filled], [[row[column] for column in filled] for row in rows]


def nearest_k(ks: Iterable[int]) -> int:
    """The number of neighbours nearest to ``HEADLINE_K``, to show if only one is shown."""
    return min(ks, key=lambda k: (abs(k - HEADLINE_K), k))


def row_name(row: Row) -> str:
    """Name of the encoder or baseline of a row."""
    if row.pool is None or row.feature_norm is None:
        return shown(row.subject)
    return f"{shown(row.subject)}, {view_name(row.pool, row.feature_norm)}"


def row_cells(row: Row, number: int, ks: Sequence[int]) -> list[str]:
    """The cells of a row in a table: name, length, accuracies with the label fraction of a number, and metrics."""
    scores = row.scores[number]
    return [
        row_name(row),
        f"{row.dimensions:,}",
        *(percent(scores.knn[k]) if scores.knn and k in scores.knn else "" for k in ks),
        percent(scores.linear.test) if scores.linear else "",
        percent(scores.attentive.test) if scores.attentive else "",
        f"{row.rank_me:.1f}" if row.rank_me is not None else "",
        f"{row.alpha_req:.2f}" if row.alpha_req is not None else "",
    ]


def view_name(pool: str, norm: str) -> str:
    """Name of a view for tables and pages."""
    words = {"cls": "class token", "mean": "mean of patches", "patches": "patches"}
    return words[pool] + ("" if norm == "final" else ", no norm")


def percent(one: Accuracy) -> str:
    """An accuracy and half the width of its interval as text, in per cent."""
    return f"{100 * one.value:.1f} ± {50 * (one.high - one.low):.1f}"
