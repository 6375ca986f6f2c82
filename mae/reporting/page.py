"""The report of a run as a self-contained HTML page."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from mae.io.text import counted
from mae.reporting.curves import Curve, chart, evenly, thin, x_range_of
from mae.reporting.render import LONGEST_TEXT, SHARED, render, time_text
from mae.reporting.run_log import LoggedEpoch, RunLog
from mae.reporting.runs import figure_text

if TYPE_CHECKING:
    from markupsafe import Markup

MOST_ROWS = 50
MOST_SETTINGS = 200  # largest number of settings on the page; a real run has about 40
WAITS_MUCH = 0.2  # fraction of the time spent waiting for images from which the page warns


class PreviewImage(NamedTuple):
    """A preview ready for the page."""

    epoch: int
    psnr: float
    data_uri: str
    size: tuple[int, int]

    @property
    def caption(self) -> str:
        """The caption above the image."""
        return f"after {counted(self.epoch, 'epoch')}" + (
            f", PSNR {self.psnr:.1f} dB" if math.isfinite(self.psnr) else ""
        )


def page(
    name: str,
    log: RunLog,
    images: Sequence[PreviewImage],
    notes: Sequence[str],
    written: float | None,
    now: float,
    state: str = "stopped",
) -> str:
    """The page as HTML.

    Args:
        name: Name of the run.
        log: Data of its folder.
        images: Previews to show.
        notes: Messages about files that could not be read.
        written: Time of the last log line, seconds since 1970.
        now: Time of writing, seconds since 1970.
        state: Whether the run is training, stopped, finished, or unknown.
    """
    return render(
        SHARED / "report.html",
        name=name,
        standing=_standing(log, written, now, state),
        tiles=_tiles(log),
        changes=[f"after epoch {figure_text(one.epoch)}: {one.what}" for one in log.changes[-MOST_ROWS:]],
        warnings=[*_warnings(log), *notes],
        charts=_charts(log),
        images=images,
        previews=len(log.previews),
        of_pixels=log.command == "pretrain",
        epochs=len(log.epochs),
        epoch_rows=[_epoch_row(log.epochs[number]) for number in evenly(len(log.epochs), MOST_ROWS)],
        unreadable=log.unreadable,
        most_rows=MOST_ROWS,
        config=_table(log.config),
        environment=_table(_flat(log.environment)),
    )


def _standing(log: RunLog, written: float | None, now: float, state: str) -> str:
    done = len(log.epochs) and log.epochs[-1].epoch
    of = f"{done:,} of " if log.wanted_epochs else ""
    epochs = of + counted(log.wanted_epochs or done, "epoch")
    words = {"training": "training", "stopped": "stopped"}.get(state, "training or stopped")
    state = "finished" if log.finished else words
    last = f", last log line {time_text(written)}" if written is not None else ""
    return f"{epochs} done, {state}{last}; page written {time_text(now)} by maecli report"


def _tiles(log: RunLog) -> dict[str, str]:
    first = log.epochs[0] if log.epochs else None
    last = log.epochs[-1] if log.epochs else None
    loss = last.loss if last else log.steps[-1].loss if log.steps else math.nan
    seconds = sum(one.seconds for one in log.epochs if math.isfinite(one.seconds))
    psnr, of_pixels = [one.psnr for one in log.previews if math.isfinite(one.psnr)], log.command == "pretrain"
    left = log.seconds_left()
    tiles = _accuracy_tiles(log) | {
        "loss of the last epoch" if last else "loss": figure_text(loss),
        **_against_zero_prediction(log, loss),
        "loss of the first epoch": figure_text(first.loss) if first else "-",
        **({f"PSNR, masked patches{_help(log)}": f"{psnr[-1]:.1f} dB" if psnr else "-"} if of_pixels else {}),
        "steps": _steps(log),
        "images/s": figure_text(_mean(one.images_per_second for one in log.epochs[-20:])),
        "waiting for images": _percent(_mean(one.data_wait for one in log.epochs[-20:])),
        **({"waiting in the first epoch": _percent(first.data_wait)} if first and len(log.epochs) > 1 else {}),
        "time in epochs": _duration(seconds) if last else "-",
    }
    measured = {
        "loss of held-out images": figure_text(log.newest("val_loss")),
        "k-NN accuracy": _percent(log.newest("knn")),
        "linear accuracy": _percent(log.newest("linear")),
        "RankMe": figure_text(log.newest("rank_me")),
        "time for these measurements": _duration(sum(one.seconds for one in log.probes if math.isfinite(one.seconds))),
    }
    if log.probes:
        tiles |= {name: value for name, value in measured.items() if value != "-"}
    if not log.finished and left is not None:
        tiles["estimated time left"] = _duration(left)
    return tiles


def _against_zero_prediction(log: RunLog, loss: float) -> dict[str, str]:
    """Loss of predicting zero: about 1 for normalised patches; unknown for raw pixels."""
    return {"of the loss of predicting zero": _percent(loss)} if log.config.get("norm_pix_loss") is True else {}


def _accuracy_tiles(log: RunLog) -> dict[str, str]:
    tiles = {}
    if (test := log.test) is not None:
        span = f" ({test.low:.1%} to {test.high:.1%})" if math.isfinite(test.low + test.high) else ""
        tiles[f"test accuracy{span}"] = _percent(test.accuracy)
    known = [one for one in log.validations if math.isfinite(one.accuracy)]
    if known:
        tested = [one for one in known if test is not None and one.epoch == test.epoch]
        best = tested[0] if tested else max(known, key=lambda one: one.accuracy)
        tiles[f"held-out accuracy, epoch {best.epoch:,}"] = _percent(best.accuracy)
    return tiles


def _warnings(log: RunLog) -> list[str]:
    warnings = []
    wait = _mean(one.data_wait for one in log.epochs[-20:])
    if wait > WAITS_MUCH:
        warnings.append(
            f"{wait:.0%} of the time is spent waiting for images; more --workers, --cache, or the faster decoder "
            "(pip install 'maecli[fast]') may help"
        )
    losses = [*(one.loss for one in log.steps), *(one.loss for one in log.epochs)]
    lost = sum(not math.isfinite(loss) for loss in losses)
    if lost:
        warnings.append(f"{lost:,} lines of the log have a non-finite loss and are not in the curves")
    if log.left_out:
        skipped = "1 step was" if log.left_out == 1 else f"{log.left_out:,} steps were"
        warnings.append(f"{skipped} skipped because of a non-finite loss or gradient")
    if log.rollbacks:
        warnings.append(f"the run returned to a saved state {log.rollbacks:,} times")
    if log.other_lines:
        warnings.append(f"{log.other_lines:,} lines of the log have an unknown kind and are not shown")
    if log.broken_lines > 1:  # one may be the line that is being written
        warnings.append(f"{log.broken_lines:,} lines of the log cannot be read")
    return warnings


def _help(log: RunLog) -> str:
    return " (helped by the original)" if log.psnr_uses_original else ""


def _charts(log: RunLog) -> list[Markup]:
    steps = log.steps
    x_range = x_range_of([log.epochs_done, *(one.epoch for one in log.previews), *(one.epoch for one in log.probes)])
    normalised = log.psnr_uses_original
    psnr = thin("mean of the preview images", ((one.epoch, one.psnr) for one in log.previews))
    held_out = [thin("held-out images", ((one.epoch, one.loss) for one in log.validations))] if log.validations else []
    return [
        *_accuracy_chart(log, x_range),
        chart(
            "Loss over epochs",
            [
                thin("logged steps", ((one.epoch, one.loss) for one in steps)),
                *held_out,
                _means(log, "loss"),
                *_measured(log, val_loss="held-out images, fixed masks"),
            ],
            x_range=x_range,
            level=(1.0, "predicting zero: about 1 for normalised patches") if normalised else None,
            may_be_logarithmic=True,
        ),
        chart(
            "Learning rate over epochs",
            [
                thin("logged steps", ((one.epoch, one.lr) for one in steps)),
                _means(log, "lr"),
            ],
            x_range=x_range,
            y_from=0,
        ),
        *_probe_charts(log, x_range),
        *(
            [chart(f"PSNR on masked patches, dB, over epochs{_help(log)}", [psnr], x_range=x_range)]
            if log.command == "pretrain"
            else []
        ),
        chart("Images/s over epochs", _rates(log, "images_per_second"), x_range=x_range, y_from=0),
        chart(
            "Fraction of the time spent waiting for images",
            _rates(log, "data_wait"),
            x_range=x_range,
            y_from=0,
            y_to=1,
        ),
    ]


def _accuracy_chart(log: RunLog, x_range: tuple[float, float]) -> list[Markup]:
    """The chart of the held-out accuracy of a classification run; empty for other runs."""
    if not log.validations:
        return []
    curve = thin("held-out training images", ((one.epoch, one.accuracy) for one in log.validations))
    test = log.test
    known = test is not None and math.isfinite(test.accuracy)
    level = (test.accuracy, "test images, at the end") if test is not None and known else None
    return [chart("Accuracy over epochs", [curve], x_range=x_range, y_from=0, y_to=1, level=level)]


def _probe_charts(log: RunLog, x_range: tuple[float, float]) -> list[Markup]:
    """The charts of the probes' measurements that exist."""
    accuracies = _measured(log, knn="20 nearest neighbours", linear="linear")
    ranks = _measured(log, rank_me="of the probe's training images")
    charts = []
    if accuracies:
        charts.append(chart("Accuracy of probes of the encoder, over epochs", accuracies, x_range=x_range))
    if ranks:
        charts.append(chart("RankMe, the number of directions that features use, over epochs", ranks, x_range=x_range))
    return charts


def _measured(log: RunLog, **titles: str) -> list[Curve]:
    """One curve per probe value that was measured at least once, by name and title."""
    found = {name: [(one.epoch, getattr(one, name)) for one in log.probes] for name in titles}
    return [
        thin(titles[name], points) for name, points in found.items() if any(math.isfinite(value) for _, value in points)
    ]


def _rates(log: RunLog, field: str) -> list[Curve]:
    return [
        thin("logged steps", ((one.epoch, getattr(one, field)) for one in log.steps)),
        _means(log, field),
    ]


def _means(log: RunLog, field: str) -> Curve:
    """Epoch means, drawn at the middle of each epoch."""
    return thin("mean of an epoch", ((one.epoch - 0.5, getattr(one, field)) for one in log.epochs))


def _epoch_row(one: LoggedEpoch) -> tuple[str, ...]:
    return (
        f"{one.epoch:,}",
        figure_text(one.loss),
        figure_text(one.lr),
        figure_text(one.images_per_second),
        _percent(one.data_wait),
        figure_text(one.seconds),
    )


def _table(values: Mapping[str, Any]) -> dict[str, Any]:
    """The first settings as text, and the number of further ones."""
    chosen = {name: value_text(value) for name, value in itertools.islice(values.items(), MOST_SETTINGS)}
    return {"shown": chosen, "more": len(values) - len(chosen)}


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten nested tables into rows, and give the memory a unit."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= {name if name not in values else f"{key} {name}": item for name, item in value.items()}
        elif key == "memory_bytes" and isinstance(value, int):
            flat["memory"] = f"{value / 2**30:.1f} GiB"
        else:
            flat[key] = value
    return flat


def value_text(value: Any, depth: int = 3) -> str:
    """A setting as text; deeply nested and very long values are cut."""
    if value is None or value == []:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if not isinstance(value, list | dict):
        return str(value)[:LONGEST_TEXT]
    if depth == 0:
        return "..."
    if isinstance(value, dict):
        parts = [f"{key} {value_text(item, depth - 1)}" for key, item in list(value.items())[:MOST_ROWS]]
    else:
        parts = [value_text(item, depth - 1) for item in value[:MOST_ROWS]]
    more = f" and {len(value) - MOST_ROWS:,} more" if len(value) > MOST_ROWS else ""
    return ", ".join(parts)[:LONGEST_TEXT] + more


def _steps(log: RunLog) -> str:
    """The last step that the log names, with a plus where more were taken."""
    logged = log.steps[-1] if log.steps else None
    more = not log.finished or (logged and logged.step == log.last_step and logged.epoch < log.epochs_done)
    return f"{log.last_step:,}{'+' if more else ''}" if log.last_step else "-"


def _mean(values: Iterable[float]) -> float:
    good = [value for value in values if math.isfinite(value)]
    return sum(good) / len(good) if good else math.nan


def _percent(share: float) -> str:
    return f"{share:.1%}" if math.isfinite(share) else "-"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24:,} d {hours % 24} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
