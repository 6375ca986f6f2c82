"""Several runs on one page: the differences are shown, and untrusted content is escaped."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mae.errors import ConfigError
from mae.reporting.config import MOST_COMPARED, ReportConfig
from mae.reporting.render import SHARED
from mae.reporting.run import ComparisonResult, report
from mae.reporting.side_by_side import differing_settings
from maecli.app import app
from tests.unit.reporting.pages import colour_number, named_colours, of_class, text_of, tree
from tests.unit.reporting.runs import write_run
from tests.unit.reporting.test_run import EVIL, Page


def test_curves_settings_and_previews_of_both(tmp_path: Path) -> None:
    one, other = write_run(tmp_path / "one", done=10), write_run(tmp_path / "other", done=4)
    with (other / "config.toml").open("a") as file:
        file.write("lr = 1e-3\n")
    result = report(ReportConfig(run=(one, other), out=tmp_path / "page.html"))
    assert isinstance(result, ComparisonResult)
    assert [(run.run, run.state, run.epochs) for run in result.runs] == [
        ("one", "finished", 10),
        ("other", "stopped", 4),
    ]
    assert result.settings == {"lr": (None, "0.001")}
    assert result.images == 2
    page = Page(tmp_path / "page.html")
    page.check_safe()
    curves = [attributes["class"] for tag, attributes in page.elements if tag == "path"]
    assert curves == ["curve c0", "curve c1"] * 4
    for words in ("one: after 9 epochs", "other: after 4 epochs", "0.001", "predicting zero", "10 of 10"):
        assert words in page.text


@pytest.mark.parametrize("steps", [0, 1])
def test_a_short_run_with_fewer_logged_steps_than_epochs_is_drawn_by_its_epochs(tmp_path: Path, steps: int) -> None:
    runs = [write_run(tmp_path / name, done=done) for name, done in (("long", 10), ("short", 2))]
    lines = (runs[1] / "log.jsonl").read_text().splitlines()
    kept = [line for line in lines if "loss" in json.loads(line)][:steps]
    kept += [line for line in lines if "train_loss" in json.loads(line)]
    assert len(kept) == 2 + steps
    (runs[1] / "log.jsonl").write_text("\n".join(kept) + "\n")
    report(ReportConfig(run=tuple(runs), out=tmp_path / "page.html"))
    lines_of = [
        attributes["d"]
        for tag, attributes in Page(tmp_path / "page.html").elements
        if tag == "path" and attributes["class"] == "curve c1"
    ]
    assert len(lines_of) == 3  # loss, learning rate, images/s
    assert all(line.count("L") == 1 for line in lines_of)  # from one epoch to the next


def test_a_run_without_previews_keeps_its_colour(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, previews=0 if name == "a" else 3) for name in ("a", "b")]
    report(ReportConfig(run=tuple(runs), out=tmp_path / "page.html"))
    page = Page(tmp_path / "page.html")
    curves = [attributes["class"] for tag, attributes in page.elements if tag == "path"]
    assert curves.count("curve c1") == 4
    assert curves.count("curve c0") == 3


def test_what_probes_and_tests_measured_is_on_the_page_and_in_the_table(tmp_path: Path) -> None:
    one, other, third = (write_run(tmp_path / "runs" / name, done=3) for name in ("one", "other", "third"))
    with (one / "log.jsonl").open("a") as log:
        for epochs in (0, 2):
            line = {
                "epochs": epochs,
                "step": 8 * epochs,
                "knn": 0.3 + 0.1 * epochs,
                "linear": 0.6,
                "probe_seconds": 1.0,
            }
            log.write(json.dumps(line) + "\n")
    with (other / "log.jsonl").open("a") as log:
        tested = {"test_accuracy": 0.75, "test_low": 0.7, "test_high": 0.8, "test_images": 40}
        log.write(json.dumps({"epoch": 2, "step": 24, **tested}) + "\n")
    report(ReportConfig(run=(one, other), out=tmp_path / "page.html"))
    page = Page(tmp_path / "page.html")
    page.check_safe()
    for words in ("k-NN", "50.0%", "60.0%", "75.0%", "k-NN accuracy of the encoder over epochs", "Linear accuracy"):
        assert words in page.text
    table = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["runs", str(tmp_path / "runs")]).stdout
    assert all(words in table for words in ("k-NN", "linear", "test", "50.0%", "60.0%", "75.0%"))
    report(ReportConfig(run=(third, third), out=tmp_path / "plain.html"))
    assert "k-NN" not in Page(tmp_path / "plain.html").text


def test_legends_and_tables_name_each_run_by_its_colour(tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    runs = [write_run(tmp_path / name, done=10, previews=0 if name == "b" else 3) for name in names]
    for number, run in enumerate(runs):
        with (run / "config.toml").open("a") as file:
            file.write(f"lr = {number}.5\n" + ("mask_ratio = 0.9\n" if number == 2 else ""))
    with (runs[1] / "log.jsonl").open("a") as log:
        log.write(json.dumps({"epochs": 2, "step": 16, "knn": 0.5, "linear": 0.6, "probe_seconds": 1.0}) + "\n")
    report(ReportConfig(run=tuple(runs), out=tmp_path / "page.html"))
    root = tree(tmp_path / "page.html")
    summaries, settings = of_class(root, "runs")
    heads, *rows = summaries
    assert [named_colours(row) for row in rows] == [[(number, name)] for number, name in enumerate(names)]
    assert {len(row) for row in rows} == {len(heads)}
    charts = {text_of(figure[0]): figure for figure in of_class(root, "chart")}
    assert len(charts) == 6
    for title, figure in charts.items():
        drawn = [colour_number(curve) for curve in of_class(figure, "curve")]
        of_some = {"PSNR": [0, 2], "k-NN": [1], "Linear": [1]}
        assert drawn == of_some.get(title.split()[0], [0, 1, 2]), title
        (legend,) = of_class(figure, "legend")
        entries = named_colours(legend)
        assert [entry for entry in entries if entry[0] is not None] == [(number, names[number]) for number in drawn]
        level = [text for number, text in entries if number is None]
        assert bool(level) == bool(of_class(figure, "grid") and len(of_class(figure, "level")) == 2)
        assert level == (["predicting zero: about 1 for normalised patches"] if title.startswith("Loss") else [])
    heads, *rows = settings
    assert named_colours(heads) == [(number, name) for number, name in enumerate(names)]
    assert [[text_of(cell) for cell in row] for row in rows] == [
        ["lr", "0.5", "1.5", "2.5"],
        ["mask_ratio", "-", "-", "0.9"],
    ]
    (previews,) = of_class(root, "images")
    captions = [figure.find("figcaption") for figure in previews]
    assert [(colour_number(one.find("i")), text_of(one)) for one in captions] == [  # type: ignore[arg-type, union-attr]
        (0, "a: after 9 epochs, PSNR 18.0 dB"),
        (2, "c: after 9 epochs, PSNR 18.0 dB"),
    ]
    for label in of_class(previews, "zoom"):  # style.css enlarges the image right after the checked box
        assert [(one.tag, one.get("type")) for one in label] == [("input", "checkbox"), ("img", None)]


def test_every_run_has_a_colour_of_its_own() -> None:
    style = (SHARED / "style.css").read_text()
    light, dark = style.split("prefers-color-scheme: dark")
    for scheme in (light, dark):
        colours = re.findall(r"--c(\d+): (#[0-9a-f]{6})", scheme)
        assert [int(number) for number, _ in colours] == [*range(MOST_COMPARED)]
        assert len({colour for _, colour in colours}) == MOST_COMPARED
    for number in range(MOST_COMPARED):
        for what, how in (("curve", "stroke"), ("key", "background"), ("band", "fill")):
            assert style.count(f".{what}.c{number} {{ {how}: var(--c{number}); }}") == 1


def test_hostile_runs_stay_text(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / (EVIL.replace("/", "|") + str(number)), done=3) for number in range(2)]
    (runs[0] / "config.toml").write_text(f"{json.dumps(EVIL)} = {json.dumps(EVIL)}\n")
    report(ReportConfig(run=tuple(runs), out=tmp_path / "page.html"))
    page = Page(tmp_path / "page.html")
    page.check_safe()
    assert page.text.count("alert(1)") >= 6


def test_settings_that_differ() -> None:
    configs = [{"lr": 1e-3, "out": "/a", "epochs": 3, "data": ["/x/photos"]}, {"epochs": 4, "data": ["/y/photos"]}]
    assert differing_settings(configs) == {"lr": ("0.001", None), "epochs": ("3", "4")}
    assert differing_settings([configs[0], configs[0]]) == {}


def test_the_command_and_too_many(tmp_path: Path) -> None:
    one, other = write_run(tmp_path / "one"), write_run(tmp_path / "other", done=4)
    out = tmp_path / "page.html"
    seen = CliRunner(env={"COLUMNS": "120"}).invoke(app, ["report", str(one), str(other), "--out", str(out)])
    assert seen.exit_code == 0, seen.output
    assert f"wrote {out}" in seen.stdout
    assert "settings that differ: none" in seen.stdout
    document = json.loads(CliRunner().invoke(app, ["report", str(one), str(other), "--out", str(out), "--json"]).stdout)
    assert [run["run"] for run in document["runs"]] == ["one", "other"]
    for place, words in ((tmp_path / "no" / "x.html", "there is no folder"), (tmp_path / "d.html", "is a folder")):
        (tmp_path / "d.html").mkdir(exist_ok=True)
        with pytest.raises(ConfigError, match=words):
            report(ReportConfig(run=(one, other), out=place))
    with pytest.raises(ConfigError, match="at most"):
        ReportConfig(run=(one,) * (MOST_COMPARED + 1))
