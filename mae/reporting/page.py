"""A run's log as one page that needs nothing but itself."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from mae.reporting.curves import Curve, chart, evenly, thin, x_range_of
from mae.reporting.html import Html, element, join
from mae.reporting.run_log import RunLog
from mae.reporting.style import STYLE

# Even if something slipped through the escaping, it could run nothing and reach nobody.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
MOST_ROWS = 50
MOST_SETTINGS = 200  # that are shown; a real run has some 40
LONGEST_TEXT = 1000
WAITS_MUCH = 0.2  # share of the time spent waiting for pictures


class Picture(NamedTuple):
    """A preview ready for the page."""

    epoch: int
    psnr: float
    data_uri: str
    size: tuple[int, int]


def page(
    name: str, log: RunLog, pictures: Sequence[Picture], notes: Sequence[str], written: float | None, now: float
) -> str:
    """The whole document.

    Args:
        name: Of the run.
        log: What its folder tells.
        pictures: To show.
        notes: What could not be read.
        written: When the log was last written to, seconds since 1970.
        now: When the page is made.
    """
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{name}: maecli report"),
        element("style", Html(STYLE)),
    )
    body = element(
        "body",
        element("h1", name),
        element("p", _standing(log, written, now), class_="faint"),
        _tiles(log),
        *(
            element("p", f"after epoch {one.epoch:,.4g}: {one.what}", class_="faint")
            for one in log.changes[-MOST_ROWS:]
        ),
        *(element("p", line, class_="warn") for line in (*_warnings(log), *notes)),
        element("h2", "Curves"),
        _charts(log),
        element("h2", "Reconstructions"),
        _pictures(log, pictures),
        element("h2", "Epochs"),
        _epochs(log),
        element("h2", "Unreadable pictures"),
        _unreadable(log),
        element("h2", "Configuration"),
        _table(log.config) if log.config else element("p", "config.toml is missing or cannot be read"),
        element("h2", "Environment"),
        _table(_flat(log.environment))
        if log.environment
        else element(
            "p", "unknown: the run has no environment.json, which would say on what and with which versions it ran"
        ),
    )
    return "<!DOCTYPE html>\n" + element("html", head, body, lang="en") + "\n"


def _standing(log: RunLog, written: float | None, now: float) -> str:
    wanted = f" of {log.wanted_epochs:,}" if log.wanted_epochs else ""
    done = f"{len(log.epochs) and log.epochs[-1].epoch:,}{wanted} epochs done"
    state = "finished" if log.finished else "not finished: it is under way or was stopped"
    last = f", last line of its log {_time(written)}" if written is not None else ""
    return f"{done}, {state}{last}; this page was made {_time(now)} by maecli report"


def _tiles(log: RunLog) -> Html:
    first = log.epochs[0] if log.epochs else None
    last = log.epochs[-1] if log.epochs else None
    loss = last.loss if last else log.steps[-1].loss if log.steps else math.nan
    seconds = sum(one.seconds for one in log.epochs if math.isfinite(one.seconds))
    psnr = [one.psnr for one in log.previews if math.isfinite(one.psnr)]
    left = log.seconds_left()
    tiles = {
        "loss of the last epoch" if last else "loss": _figure(loss),
        "loss of the first epoch": _figure(first.loss) if first else "-",
        f"PSNR, removed patches{_help(log)}": f"{psnr[-1]:.1f} dB" if psnr else "-",
        "steps": f"{log.steps[-1].step:,}+" if log.steps and not log.finished else _steps(log),
        "pictures a second": _figure(_mean(one.images_per_second for one in log.epochs[-20:])),
        "waiting for pictures": _percent(_mean(one.data_wait for one in log.epochs[-20:])),
        "time in epochs": _duration(seconds) if last else "-",
    }
    if not log.finished and left is not None:
        tiles["left, at this pace"] = _duration(left)
    return element(
        "dl",
        *(element("div", element("dt", key), element("dd", value)) for key, value in tiles.items()),
        class_="tiles",
    )


def _warnings(log: RunLog) -> list[str]:
    warnings = []
    wait = _mean(one.data_wait for one in log.epochs[-20:])
    if wait > WAITS_MUCH:
        warnings.append(
            f"{wait:.0%} of the time is spent waiting for pictures: more --workers, a --cache, or the faster decoder "
            "of pip install 'maecli[fast]' may help"
        )
    losses = [*(one.loss for one in log.steps), *(one.loss for one in log.epochs)]
    lost = sum(not math.isfinite(loss) for loss in losses)
    if lost:
        warnings.append(f"{lost:,} lines of the log have a loss that is no finite number; the curves leave them out")
    if log.left_out:
        warnings.append(f"{log.left_out:,} steps were left out, since their loss or gradient was no finite number")
    if log.rollbacks:
        warnings.append(f"the run went back to a saved state {log.rollbacks:,} times")
    if log.other_lines:
        warnings.append(f"{log.other_lines:,} lines of the log are of a kind that this page does not show")
    if log.broken_lines > 1:  # one is the line that is being written
        warnings.append(f"{log.broken_lines:,} lines of the log cannot be read")
    return warnings


def _help(log: RunLog) -> str:
    """A model of normalised patches is drawn with the original's brightness and contrast, which lifts its PSNR."""
    return " (helped by the original)" if log.config.get("norm_pix_loss") is True else ""


def _charts(log: RunLog) -> Html:
    steps = log.steps
    x_range = x_range_of([log.epochs_done, *(one.epoch for one in log.previews)])
    normalised = log.config.get("norm_pix_loss") is True
    psnr = thin("mean of the preview pictures", ((one.epoch, one.psnr) for one in log.previews))
    return element(
        "div",
        chart(
            "Loss over epochs",
            [
                thin("logged steps", ((one.epoch, one.loss) for one in steps)),
                _means(log, "loss"),
            ],
            x_range=x_range,
            level=(1.0, "nothing learnt: about 1 for normalised patches") if normalised else None,
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
        chart(f"PSNR on removed patches, dB, over epochs{_help(log)}", [psnr], x_range=x_range),
        chart("Pictures a second over epochs", _rates(log, "images_per_second"), x_range=x_range, y_from=0),
        chart(
            "Share of the time spent waiting for pictures", _rates(log, "data_wait"), x_range=x_range, y_from=0, y_to=1
        ),
        class_="charts",
    )


def _rates(log: RunLog, field: str) -> list[Curve]:
    return [
        thin("logged steps", ((one.epoch, getattr(one, field)) for one in log.steps)),
        _means(log, field),
    ]


def _means(log: RunLog, field: str) -> Curve:
    """Each at the middle of its epoch, where it lies beside the steps that it is the mean of."""
    return thin("mean of an epoch", ((one.epoch - 0.5, getattr(one, field)) for one in log.epochs))


def _pictures(log: RunLog, pictures: Sequence[Picture]) -> Html:
    if not pictures:
        return element("p", "none yet" if not log.previews else f"{len(log.previews):,} there, none shown")
    figures = []
    for one in pictures:
        caption = f"after {one.epoch:,} epochs" + (f", PSNR {one.psnr:.1f} dB" if math.isfinite(one.psnr) else "")
        picture = element("img", src=one.data_uri, width=one.size[0], height=one.size[1], alt=caption)
        figures.append(element("figure", element("figcaption", caption), picture))
    of = f"{len(pictures):,} of {len(log.previews):,}, " if len(pictures) < len(log.previews) else ""
    return join(
        element("p", f"{of}as JPEG; the run's folder has the originals under previews", class_="faint"),
        element("div", *figures, class_="pictures"),
    )


def _epochs(log: RunLog) -> Html:
    if not log.epochs:
        return element("p", "none is done yet")
    titles = ("epoch", "loss", "learning rate", "pictures/s", "waiting", "seconds")
    chosen = [log.epochs[number] for number in evenly(len(log.epochs), MOST_ROWS)]
    rows = [
        (
            f"{one.epoch:,}",
            _figure(one.loss),
            _figure(one.lr),
            _figure(one.images_per_second),
            _percent(one.data_wait),
            _figure(one.seconds),
        )
        for one in chosen
    ]
    table = element(
        "table",
        element("tr", *(element("th", title, class_="n") for title in titles)),
        *(element("tr", *(element("td", value, class_="n") for value in row)) for row in rows),
    )
    summary = f"{len(chosen):,} of {len(log.epochs):,} epochs as a table"
    return element("details", element("summary", summary), element("div", table, class_="sheet"))


def _unreadable(log: RunLog) -> Html:
    if not log.unreadable:
        return element("p", "none")
    rows = [
        element("tr", element("td", name[:LONGEST_TEXT]), element("td", reason[:LONGEST_TEXT]))
        for name, reason in log.unreadable[:MOST_ROWS]
    ]
    more = len(log.unreadable) - len(rows)
    return join(
        element("p", f"{len(log.unreadable):,} were passed over"),
        element("table", *rows, class_="pairs"),
        element("p", f"and {more:,} more, in the run's unreadable.tsv" if more else ""),
    )


def _table(values: Mapping[str, Any]) -> Html:
    chosen = list(values.items())[:MOST_SETTINGS]
    rows = [element("tr", element("th", name[:LONGEST_TEXT]), element("td", _value(value))) for name, value in chosen]
    more = len(values) - len(chosen)
    return join(
        element("div", element("table", *rows, class_="pairs"), class_="columns"),
        element("p", f"and {more:,} more" if more else ""),
    )


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Tables within the table become rows of it; sizes get a unit."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= {name if name not in values else f"{key} {name}": item for name, item in value.items()}
        elif key == "memory_bytes" and isinstance(value, int):
            flat["memory"] = f"{value / 2**30:.1f} GiB"
        else:
            flat[key] = value
    return flat


def _value(value: Any, depth: int = 3) -> str:
    """A setting as it reads; what is nested deeper or goes on for longer than any real one is cut."""
    if value is None or value == []:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if not isinstance(value, list | dict):
        return str(value)[:LONGEST_TEXT]
    if depth == 0:
        return "..."
    if isinstance(value, dict):
        parts = [f"{key} {_value(item, depth - 1)}" for key, item in list(value.items())[:MOST_ROWS]]
    else:
        parts = [_value(item, depth - 1) for item in value[:MOST_ROWS]]
    more = f" and {len(value) - MOST_ROWS:,} more" if len(value) > MOST_ROWS else ""
    return ", ".join(parts)[:LONGEST_TEXT] + more


def _steps(log: RunLog) -> str:
    return f"{log.steps[-1].step:,}" if log.steps else "-"


def _mean(values: Iterable[float]) -> float:
    good = [value for value in values if math.isfinite(value)]
    return sum(good) / len(good) if good else math.nan


def _figure(value: float) -> str:
    return f"{value:,.4g}" if math.isfinite(value) else "-"


def _percent(share: float) -> str:
    return f"{share:.1%}" if math.isfinite(share) else "-"


def _time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24:,} d {hours % 24} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
