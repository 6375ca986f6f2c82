"""What ``evaluate`` found as one page that needs nothing but itself."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import PurePath

from mae.evaluation.gallery import Gallery, Thumbnail
from mae.evaluation.results import EvaluateResult, Headline, Row, Scores, percent, row_name, view_name
from mae.reporting.html import Html, element, join
from mae.reporting.page import LONGEST_TEXT, POLICY
from mae.reporting.style import STYLE

MOST_CONFUSED = 30  # classes of a whole matrix; of more, the pairs that are confused most are listed
MOST_CLASSES = 200  # rows of the table of classes
MOST_NAMES = 24  # classes that a legend names
_WIDTH, _HEIGHT = 1000, 640  # units of the drawing
_OWN_STYLE = """
.rows td.n, .confusion td { white-space: nowrap; }
tr.reference td { color: var(--faint); }
.confusion { width: auto; } .confusion td, .confusion th { padding: .15rem .4rem; text-align: right; border: 0; }
.confusion .hit { outline: 1px solid var(--ink); }
.strip { display: flex; flex-wrap: wrap; gap: .4rem; margin: .5rem 0; align-items: flex-start; }
.strip figure { width: 6.5rem; } .strip img { width: 6rem; height: auto; border: 3px solid var(--rule); }
.strip figcaption { font-size: .75rem; font-weight: normal; line-height: 1.2; }
.strip .right img { border-color: #2e8b57; } .strip .wrong img { border-color: #c0392b; }
.map { border: 1px solid var(--rule); width: 100%; height: auto; }
.map circle { fill-opacity: .7; }
.dot { display: inline-block; width: .7rem; height: .7rem; border-radius: 50%; margin-right: .35rem; }
"""


def page(result: EvaluateResult, gallery: Gallery, view: str, now: float) -> str:
    """The whole document.

    Args:
        result: What was measured.
        gallery: Of one view of the first checkpoint.
        view: Which, in words.
        now: When the page is made, seconds since 1970.
    """
    name = result.data.name or str(result.data)
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{name}: maecli evaluate"),
        element("style", Html(STYLE + _OWN_STYLE)),
    )
    body = element(
        "body",
        element("h1", f"What the encoder knows of {name}"),
        element("p", _standing(result, now), class_="faint"),
        *(element("p", note[:LONGEST_TEXT], class_="warn") for note in result.notes),
        *_headline(result.headline),
        element("h2", "Accuracy"),
        *(_table(result, number) for number in range(len(result.rows[0].scores))),
        element("h2", f"Nearest training images ({view})"),
        _strips(result, gallery),
        element("h2", f"Test images by two principal components ({view})"),
        _map(result, gallery),
        *_classes(result.headline),
        element("h2", "Images that could not be read"),
        _skipped(result),
    )
    return "<!DOCTYPE html>\n" + element("html", head, body, lang="en") + "\n"


def _standing(result: EvaluateResult, now: float) -> str:
    time = datetime.datetime.fromtimestamp(now, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return (
        f"{result.train_images:,} training and {result.test_images:,} test images, {len(result.classes):,} classes; "
        f"frozen features, {result.precision} on {result.device}; made {time} by maecli evaluate"
    )


def _headline(headline: Headline | None) -> list[Html]:
    if headline is None:
        return []
    tiles = {
        "linear accuracy": percent(headline.linear),
        "mean over classes": f"{100 * headline.mean_class_accuracy:.1f} %",
        "features": view_name(headline.pool, headline.feature_norm),
        "checkpoint": headline.subject[-LONGEST_TEXT:],
    }
    return [
        element(
            "dl",
            *(element("div", element("dt", key), element("dd", value)) for key, value in tiles.items()),
            class_="tiles",
        ),
        element("p", "of the view that was best on held-out training images", class_="faint"),
    ]


def _table(result: EvaluateResult, number: int) -> Html:
    ks = sorted({k for row in result.rows for scores in row.scores for k in scores.knn or ()})
    titles = ["numbers", *(f"k-NN, {k}" for k in ks), "linear", "attentive", "RankMe", "alpha"]
    first = result.rows[0].scores[number]
    caption = (
        f"{first.label_fraction:g} of the labels, {first.train_images:,} images; accuracy in %, ± half of its 95 % "
    )
    return join(
        element("p", caption + "interval"),
        element(
            "div",
            element(
                "table",
                element("tr", element("th", "features"), *(element("th", title, class_="n") for title in titles)),
                *(_row(row, row.scores[number], ks) for row in result.rows),
                class_="rows",
            ),
            class_="sheet",
        ),
    )


def _row(row: Row, scores: Scores, ks: Sequence[int]) -> Html:
    cells = [f"{row.dimensions:,}"]
    cells += [percent(scores.knn[k]) if scores.knn and k in scores.knn else "" for k in ks]
    cells += [
        percent(scores.linear.test) if scores.linear else "",
        percent(scores.attentive.test) if scores.attentive else "",
        f"{row.rank_me:.1f}" if row.rank_me is not None else "",
        f"{row.alpha_req:.2f}" if row.alpha_req is not None else "",
    ]
    return element(
        "tr",
        element("td", row_name(row)[:LONGEST_TEXT]),
        *(element("td", cell, class_="n") for cell in cells),
        class_=None if row.kind == "checkpoint" else "reference",
    )


def _strips(result: EvaluateResult, gallery: Gallery) -> Html:
    strips = []
    for strip in gallery.strips:
        others = [
            _figure(one, result, "right" if one.label == strip.query.label else "wrong") for one in strip.neighbours
        ]
        strips.append(element("div", _figure(strip.query, result, "query"), *others, class_="strip"))
    text = "The first of each row is a test image; the others are the most similar training images, the nearest first. "
    return join(element("p", text + "Green is the same class, red another one.", class_="faint"), *strips)


def _figure(one: Thumbnail, result: EvaluateResult, kind: str) -> Html:
    label = result.classes[one.label][:LONGEST_TEXT]
    name = PurePath(one.name).name  # not the folders of whoever made the page
    image = element("img", src=one.data_uri, width=one.size[0], height=one.size[1], alt=label, title=name)
    return element("figure", image, element("figcaption", f"test: {label}" if kind == "query" else label), class_=kind)


def _map(result: EvaluateResult, gallery: Gallery) -> Html:
    classes = len(result.classes)
    dots = [
        element(
            "circle",
            cx=f"{20 + point.x * (_WIDTH - 40):.0f}",
            cy=f"{_HEIGHT - 20 - point.y * (_HEIGHT - 40):.0f}",
            r=5,
            fill=_colour(point.label, classes),
        )
        for point in gallery.points
    ]
    explained = " and ".join(f"{share:.0%}" for share in gallery.explained)
    names = [
        element("span", element("i", class_="dot", style=f"background:{_colour(number, classes)}"), name[:LONGEST_TEXT])
        for number, name in enumerate(result.classes[:MOST_NAMES])
    ]
    more = f"and {classes - MOST_NAMES:,} more" if classes > MOST_NAMES else ""
    return join(
        element(
            "p",
            f"{len(gallery.points):,} test images; the axes hold {explained} of the variance, so what lies together "
            "here may still be told apart.",
            class_="faint",
        ),
        element(
            "svg",
            *dots,
            viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
            role="img",
            class_="map",
            aria_label="test images as points, coloured by class",
        ),
        element("p", *names, more, class_="legend"),
    )


def _colour(number: int, classes: int) -> str:
    """Hues as far apart as there are classes; neighbours in the list differ in lightness too."""
    return f"hsl({360 * number / classes:.0f} 70% {(42, 58)[number % 2]}%)"


def _classes(headline: Headline | None) -> list[Html]:
    if headline is None:
        return []
    worst = sorted(headline.classes, key=lambda one: one.test.value)
    rows = [
        element(
            "tr",
            element("td", one.name[:LONGEST_TEXT]),
            element("td", f"{one.test_images:,}", class_="n"),
            element("td", percent(one.test), class_="n"),
        )
        for one in worst[:MOST_CLASSES]
    ]
    more = f"and {len(worst) - MOST_CLASSES:,} more that are better" if len(worst) > MOST_CLASSES else ""
    titles = element(
        "tr", element("th", "class"), element("th", "test images", class_="n"), element("th", "linear", class_="n")
    )
    return [
        element("h2", "Classes, the worst first"),
        element("div", element("table", titles, *rows), class_="sheet"),
        element("p", more),
        element("h2", "What is taken for what"),
        _matrix(headline) if len(headline.classes) <= MOST_CONFUSED else _pairs(headline),
    ]


def _matrix(headline: Headline) -> Html:
    names = [one.name[:LONGEST_TEXT] for one in headline.classes]
    rows = []
    for number, counts in enumerate(headline.confusion):
        total = max(1, sum(counts))
        cells = [
            element(
                "td",
                f"{count:,}" if count else "",
                class_="hit" if number == other else None,
                style=f"background:rgb({'46 139 87' if number == other else '192 57 43'} / {0.85 * count / total:.2f})",
            )
            for other, count in enumerate(counts)
        ]
        rows.append(element("tr", element("th", names[number]), *cells))
    top = element("tr", element("th", "true \\ named"), *(element("th", name) for name in names))
    return element("div", element("table", top, *rows, class_="confusion"), class_="sheet")


def _pairs(headline: Headline) -> Html:
    pairs = sorted(
        (
            (count, row, column)
            for row, counts in enumerate(headline.confusion)
            for column, count in enumerate(counts)
            if row != column and count
        ),
        key=lambda pair: -pair[0],
    )
    names = [one.name[:LONGEST_TEXT] for one in headline.classes]
    rows = [
        element("tr", element("td", names[row]), element("td", names[column]), element("td", f"{count:,}", class_="n"))
        for count, row, column in pairs[:MOST_CONFUSED]
    ]
    titles = element("tr", element("th", "true"), element("th", "named"), element("th", "test images", class_="n"))
    return element("div", element("table", titles, *rows), class_="sheet")


def _skipped(result: EvaluateResult) -> Html:
    if not result.skipped:
        return element("p", "none")
    rows = [
        element("tr", element("td", name[:LONGEST_TEXT]), element("td", reason[:LONGEST_TEXT]))
        for name, reason in result.skipped[:MOST_CONFUSED]
    ]
    more = len(result.skipped) - len(rows)
    return join(element("table", *rows, class_="pairs"), element("p", f"and {more:,} more" if more else ""))
