"""The report in a real browser: no console messages, no requests, everything visible."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mae.reporting.config import ReportConfig
from mae.reporting.run import report
from tests.browser.chromium import CONTRASTS, Chromium, find_chromium
from tests.unit.reporting.runs import write_run

BROWSER = find_chromium()
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium found: install one, or name it in CHROMIUM"),
]

SIZES = """[...document.querySelectorAll('{}')].map(one => {{
    const box = one.getBoundingClientRect();
    return [box.width, box.height];
}})"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium(str(BROWSER), tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(chromium: Chromium, tmp_path: Path) -> Path:
    chromium.complaints.clear()
    chromium.requests.clear()
    run = write_run(tmp_path / "run", done=30, epochs=40, steps_per_epoch=60, log_every=1)
    (run / "unreadable.tsv").write_text("file\treason\n" + "x" * 300 + ".jpg\ttruncated\n")
    environment = {"device": "cpu", "packages": {"torch": "2.14"}, "note": "<script>alert(1)</script>"}
    (run / "environment.json").write_text(json.dumps(environment))
    report(ReportConfig(run=run, out=tmp_path / "page.html"))
    return tmp_path / "page.html"


@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("dark", [False, True])
def test_everything_is_there_to_see(chromium: Chromium, page: Path, width: int, dark: bool) -> None:
    chromium.show(width=width, dark=dark)
    chromium.open(page)
    curves: list[Any] = chromium.evaluate(SIZES.format("path.curve"))
    assert len(curves) == 9
    assert all(w > 100 and h >= 0 for w, h in curves)
    assert max(h for _, h in curves) > 50
    bands = chromium.evaluate(SIZES.format("path.band"))
    assert len(bands) == 4  # 1,800 logged steps are thinned
    assert bands[0][1] > 10
    images = chromium.evaluate(SIZES.format("img"))
    assert len(images) == 3
    assert all(w > 150 and h > 50 for w, h in images)
    assert chromium.evaluate("[...document.images].every(one => one.complete && one.naturalWidth == 160)")
    assert chromium.complaints == []
    assert [url for url in chromium.requests if not url.startswith("data:")] == [page.absolute().as_uri()]


@pytest.mark.parametrize("width", [320, 360, 1200])
def test_no_width_needs_scrolling_sideways(chromium: Chromium, page: Path, width: int) -> None:
    chromium.show(width=width)
    chromium.open(page)
    chromium.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width
    small = chromium.evaluate(
        "Math.min(...[...document.querySelectorAll('body *')].filter(one => one.childElementCount == 0 && "
        "one.textContent).map(one => parseFloat(getComputedStyle(one).fontSize)))"
    )
    assert small >= 12


def test_labels_lie_beside_the_plot_and_inside_the_page(chromium: Chromium, page: Path) -> None:
    chromium.show(width=360)
    chromium.open(page)
    inside = chromium.evaluate(
        "[...document.querySelectorAll('.ys span, .xs span')].map(one => one.getBoundingClientRect())"
        ".every(box => box.width > 0 && box.left >= 0 && box.right <= innerWidth + 1)"
    )
    assert inside


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_in_light_and_in_dark(chromium: Chromium, page: Path, dark: bool) -> None:
    chromium.show(width=1200, dark=dark)
    chromium.open(page)
    assert chromium.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(20, 24, 28)" if dark else "rgb(255, 255, 255)"
    )
    assert chromium.evaluate(CONTRASTS) >= 4.5


def test_the_slider_shows_the_chosen_epoch_and_a_preview_is_enlarged(chromium: Chromium, page: Path) -> None:
    chromium.show(width=1200)
    chromium.open(page)
    shown = "[...document.querySelectorAll('.frames > figure')].map(one => getComputedStyle(one).visibility)"
    assert chromium.evaluate(shown) == ["hidden", "hidden", "visible"]
    chromium.evaluate("document.querySelectorAll('.track label')[1].click()")
    assert chromium.evaluate(shown) == ["hidden", "visible", "hidden"]
    small = chromium.evaluate("document.querySelectorAll('.frames img')[1].getBoundingClientRect().height")
    chromium.evaluate("document.querySelectorAll('.frames img')[1].click()")
    assert chromium.evaluate("document.querySelectorAll('.frames img')[1].getBoundingClientRect().height") > 2 * small
    assert chromium.evaluate(shown) == ["hidden", "visible", "hidden"]


@pytest.mark.parametrize(("width", "dark"), [(320, False), (1600, True)])
def test_several_runs(chromium: Chromium, tmp_path: Path, width: int, dark: bool) -> None:
    names = ["base", "r" + "u" * 60, *(f"run-{number}" for number in range(10))]
    runs = [write_run(tmp_path / name, done=3 + number) for number, name in enumerate(names)]
    with (runs[1] / "config.toml").open("a") as file:
        file.write("decoder_embed_dim = 64\n")
    report(ReportConfig(run=tuple(runs), out=tmp_path / "page.html"))
    chromium.complaints.clear()
    chromium.show(width=width, dark=dark)
    chromium.open(tmp_path / "page.html")
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width
    colours = chromium.evaluate("""[...document.querySelectorAll('.chart')].map(chart => [
        [...chart.querySelectorAll('.curve')].map(one => getComputedStyle(one).stroke),
        [...chart.querySelectorAll('.key:not(.level)')].map(one => getComputedStyle(one).backgroundColor)])""")
    assert len(colours) == 4
    for curves, keys in colours:
        assert curves == keys
        assert len(set(keys)) == 12
    assert chromium.evaluate("document.querySelectorAll('.runs')[1].rows[1].cells[0].getClientRects()[0].height") < 40
    for each in range(320, 1200, 80):  # a key is on the line of its name
        chromium.show(width=each, dark=dark)
        assert chromium.evaluate("""[...document.querySelectorAll('.legend span')].every(one => {
            const name = document.createRange();
            name.selectNodeContents(one.lastChild);
            const [line, key] = [name.getClientRects()[0], one.firstElementChild.getBoundingClientRect()];
            return line.top < key.top && key.bottom < line.bottom;
        })""")
    assert chromium.complaints == []


def test_a_script_that_slipped_in_would_not_run(chromium: Chromium, page: Path) -> None:
    page.write_text(page.read_text().replace("</body>", "<script>document.title = 'run'</script></body>"))
    chromium.show(width=1200)
    chromium.open(page)
    assert chromium.evaluate("document.title") != "run"
    assert chromium.complaints  # the browser reports it, so the other tests would notice a violation


EVIL = "\"><script>document.title = 'run'</script><img src=http://127.0.0.1:9/x onerror=\"document.title = 'run'\">"


def test_hostile_names_run_nothing_and_ask_nobody(chromium: Chromium, page: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "environment.json").write_text(json.dumps({EVIL: [EVIL, {EVIL: EVIL}]}))
    (run / "config.toml").write_text(f"{json.dumps(EVIL)} = {json.dumps(EVIL)}\n")
    (run / "unreadable.tsv").write_text(f"file\treason\n{EVIL}\t{EVIL}\n")
    report(ReportConfig(run=run, out=page))
    chromium.show(width=360)
    chromium.open(page)
    assert chromium.evaluate("document.title") == "run: maecli report"
    assert chromium.evaluate("document.scripts.length") == 0
    assert chromium.evaluate("document.documentElement.scrollWidth") <= 360
    assert chromium.evaluate("document.body.innerText").count("<script>") >= 6
    assert chromium.complaints == []
    assert [url for url in chromium.requests if not url.startswith("data:")] == [page.absolute().as_uri()]


def test_a_run_that_has_just_begun(chromium: Chromium, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("epochs = 3\n")
    report(ReportConfig(run=tmp_path, out=tmp_path / "page.html"))
    chromium.complaints.clear()
    chromium.show(width=360)
    chromium.open(tmp_path / "page.html")
    assert chromium.evaluate("document.body.innerText").count("nothing logged yet") == 5
    assert chromium.complaints == []
