"""Comparison of several runs on one page: curves, differing settings, last previews."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mae.reporting.curves import Curve, chart, thin, x_range_of
from mae.reporting.page import PreviewImage, value_text
from mae.reporting.render import SHARED, render, time_text
from mae.reporting.run_log import RunLog
from mae.reporting.runs import RunSummary, accuracies, summary_cells

if TYPE_CHECKING:
    from markupsafe import Markup

MOST_DIFFERING = 100  # rows of the table of settings
FEWEST_EPOCHS = 3  # with fewer epochs, logged steps are drawn instead of epoch means, if there are more of them


class ComparedRun(NamedTuple):
    """A run on the page; ``summary.run`` is its name on the page."""

    summary: RunSummary
    log: RunLog
    preview: PreviewImage | None


def differing_settings(configs: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str | None, ...]]:
    """Settings that differ between runs: by name, their values as text; None if a run does not have it."""
    found: dict[str, tuple[str | None, ...]] = {}
    for name in dict.fromkeys(name for config in configs for name in config):
        values = tuple(_setting(name, config[name]) if name in config else None for config in configs)
        if len(set(values)) > 1 and name not in ("out", "resume"):
            found[name] = values
    return found


def _setting(name: str, value: Any) -> str:
    if name == "data" and isinstance(value, list):  # the same data may be at different paths
        return ", ".join(Path(str(one)).name for one in value[:9])
    return value_text(value)


def comparison_page(
    runs: Sequence[ComparedRun], settings: Mapping[str, Sequence[str | None]], notes: Sequence[str], now: float
) -> str:
    """The page as HTML.

    Args:
        runs: The runs, in the given order.
        settings: Result of ``differing_settings``.
        notes: Messages about files that could not be read.
        now: Time of writing, seconds since 1970.
    """
    measured = accuracies([one.summary for one in runs])
    return render(
        SHARED / "runs.html",
        standing=f"{len(runs)} runs; page written {time_text(now)} by maecli report",
        titles=("state", "epochs", "loss", "PSNR", *measured.values(), "images/s"),
        rows=[(one.summary.run, (one.summary.state, *summary_cells(one.summary, measured, " of "))) for one in runs],
        charts=_charts(runs),
        names=[one.summary.run for one in runs],
        settings=list(settings.items())[:MOST_DIFFERING],
        more_settings=max(0, len(settings) - MOST_DIFFERING),
        previews=[(number, one.summary.run, one.preview) for number, one in enumerate(runs) if one.preview],
        notes=notes,
    )


def _charts(runs: Sequence[ComparedRun]) -> list[Markup]:
    epochs = [one.log.epochs_done for one in runs]
    x_range = x_range_of([*epochs, *(preview.epoch for one in runs for preview in one.log.previews)])
    targets = {one.log.config.get("norm_pix_loss") for one in runs}
    title = "Loss over epochs" if len(targets) == 1 else "Loss over epochs; targets differ: losses are not comparable"
    probed = [
        chart(
            f"{words} accuracy of the encoder over epochs",
            _curves(runs, lambda log, name=name: _of_probes(log, name)),  # type: ignore[misc]
            x_range=x_range,
        )
        for name, words in (("knn", "k-NN"), ("linear", "Linear"))
        if any(_of_probes(one.log, name) for one in runs)
    ]
    return [
        chart(
            title,
            _curves(runs, lambda log: _of_epochs(log, "loss")),
            x_range=x_range,
            level=(1.0, "predicting zero: about 1 for normalised patches") if targets == {True} else None,
            may_be_logarithmic=True,
        ),
        chart(
            "PSNR on masked patches, dB, over epochs",
            _curves(runs, lambda log: [(one.epoch, one.psnr) for one in log.previews]),
            x_range=x_range,
        ),
        *probed,
        chart("Learning rate over epochs", _curves(runs, lambda log: _of_epochs(log, "lr")), x_range=x_range, y_from=0),
        chart(
            "Images/s over epochs",
            _curves(runs, lambda log: _of_epochs(log, "images_per_second")),
            x_range=x_range,
            y_from=0,
        ),
    ]


def _of_probes(log: RunLog, name: str) -> list[tuple[float, float]]:
    return [(one.epoch, value) for one in log.probes if math.isfinite(value := getattr(one, name))]


def _of_epochs(log: RunLog, field: str) -> list[tuple[float, float]]:
    """Epoch means at the middle of each epoch, or the logged steps if there are few epochs and more steps."""
    if len(log.epochs) >= min(FEWEST_EPOCHS, len(log.steps)):
        return [(one.epoch - 0.5, getattr(one, field)) for one in log.epochs]
    return [(one.epoch, getattr(one, field)) for one in log.steps]


def _curves(runs: Sequence[ComparedRun], points: Callable[[RunLog], Iterable[tuple[float, float]]]) -> list[Curve]:
    """One curve per run, so that each run keeps its colour; it is empty if the run has no values."""
    return [thin(one.summary.run, points(one.log)) for one in runs]
