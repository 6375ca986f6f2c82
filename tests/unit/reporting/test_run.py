"""The report: everything is in one file, for any content of the run folder."""

from __future__ import annotations

import base64
import io
import json
import re
import unittest.mock
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mae.errors import ConfigError, DataError
from mae.reporting.config import ReportConfig
from mae.reporting.run import report
from tests.unit.reporting.pages import of_class, text_of, tree
from tests.unit.reporting.runs import epoch_line, step_line, write_run

VOID = {"meta", "img", "input"}
MAY_NOT_BE = {"script", "iframe", "object", "embed", "link", "base", "form", "a", "foreignobject"}


class Page(HTMLParser):
    """Elements, attributes and text, with every start matched by its end."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, Any]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return "\n".join(self.texts)

    def check_safe(self) -> None:
        for tag, attributes in self.elements:
            assert tag not in MAY_NOT_BE
            assert not [name for name in attributes if name.startswith("on")]
            assert attributes.get("src", "data:").startswith("data:image/jpeg;base64,") or tag != "img"
            assert "href" not in attributes


def page_of(run: Path, out: Path, **options: Any) -> Page:
    report(ReportConfig(run=run, out=out, **options))
    page = Page(out)
    page.check_safe()
    return page


def test_a_finished_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "my run", done=10, epochs=10)
    out = tmp_path / "page.html"
    result = report(ReportConfig(run=run, out=out))
    page = Page(out)
    page.check_safe()
    assert (result.epochs, result.finished, result.logged_steps, result.thinned_by) == (10, True, 40, 1)
    assert (result.first_loss, result.psnr, result.images) == (1.0, 18.0, 3)
    assert result.size_bytes == out.stat().st_size < 200_000
    assert (result.first_data_wait, result.data_wait) == (0.06, 0.06)
    assert "waiting in the first epoch" in page.text
    for words in ("my run", "10 of 10 epochs done, finished", "18.0 dB", "vit_tiny", "0.9, 0.95", "off", "98"):
        assert words in page.text
    assert len([1 for tag, attributes in page.elements if tag == "path"]) == 9  # four pairs and the PSNR
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    for attributes in images:
        image = Image.open(io.BytesIO(base64.b64decode(attributes["src"].split(",")[1])))
        assert (image.format, image.size) == ("JPEG", (160, 60))
        assert (attributes["width"], attributes["height"]) == ("160", "60")
    assert "unknown: the run folder has no environment.json" in page.text
    assert [path.name for path in tmp_path.iterdir()] in (["my run", "page.html"], ["page.html", "my run"])


def test_large_numbers_have_no_exponent(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", done=1, epochs=2)
    with (run / "log.jsonl").open("a") as log:
        log.write(json.dumps(epoch_line(1) | {"seconds": 12345.6, "images_per_second": 54321.0}) + "\n")
    text = page_of(run, tmp_path / "page.html").text
    assert "12,346" in text
    assert "54,321" in text
    assert "e+04" not in text


@pytest.mark.parametrize("images", [1, 3])
def test_the_slider_shows_one_preview_by_the_button_of_its_epoch(images: int, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", done=9, epochs=9)
    report(ReportConfig(run=run, out=tmp_path / "page.html", images=images))
    root = tree(tmp_path / "page.html")
    (slider,) = of_class(root, "slider")
    *buttons, track, frames = slider
    assert {(one.tag, one.get("type"), one.get("name")) for one in buttons} == {("input", "radio", "epoch")}
    assert len(buttons) == len(track) == len(frames) == images
    assert [button.get("id") for button in buttons] == [label.get("for") for label in track]
    assert [button.get("checked") is not None for button in buttons] == [False] * (images - 1) + [True]
    captions = [text_of(figure[0]) for figure in frames]
    assert [button.get("aria-label") for button in buttons] == captions
    for label, caption in zip(track, captions, strict=True):
        assert caption.startswith(f"after {text_of(label)} epochs")
    style = text_of(root[0].find("style"))  # type: ignore[arg-type]
    for number in range(1, images + 1):
        shown = f":nth-of-type({number}):checked ~ .frames > :nth-child({number}) {{ visibility: visible; }}"
        assert style.count(shown) == 1
    assert f":nth-of-type({images + 1})" not in style
    assert ".frames > figure { grid-area: 1 / 1; visibility: hidden; }" in style


def test_what_was_measured_beside_the_training_is_drawn(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", done=4, epochs=4)
    plain = page_of(run, tmp_path / "plain.html")
    assert "held-out" not in plain.text
    with (run / "log.jsonl").open("a") as file:
        for epochs in range(5):
            line = {"epochs": epochs, "val_loss": 1 - 0.1 * epochs, "val_seconds": 1.0}
            if epochs % 2 == 0:
                line |= {"knn": 0.3 + 0.01 * epochs, "linear": 0.5, "rank_me": 20.0 + epochs, "probe_seconds": 9.0}
            file.write(json.dumps(line) + "\n")
    page = page_of(run, tmp_path / "page.html")
    for words in ("held-out images, fixed masks", "34.0%", "50.0%", "RankMe", "0.6", "32 s", "20 nearest neighbours"):
        assert words in page.text
    curves = [sum(tag == "path" for tag, _ in one.elements) for one in (plain, page)]
    assert curves[1] == curves[0] + 4


def test_the_held_out_accuracy_is_that_of_the_tested_epoch(tmp_path: Path) -> None:
    """Also where an earlier epoch had a higher one, whose weights are gone."""
    run = write_run(tmp_path / "run", done=3, epochs=3)
    with (run / "log.jsonl").open("a") as log:
        for epoch, accuracy in enumerate((0.9, 0.7, 0.8)):
            log.write(json.dumps({"epoch": epoch, "step": 8, "val_loss": 1.0, "val_accuracy": accuracy}) + "\n")
    report(ReportConfig(run=(run,), out=tmp_path / "page.html"))
    assert "held-out accuracy, epoch 1" in Page(tmp_path / "page.html").text
    with (run / "log.jsonl").open("a") as log:
        tested = {"test_accuracy": 0.75, "test_low": 0.7, "test_high": 0.8, "test_images": 40}
        log.write(json.dumps({"epoch": 2, "step": 24, **tested}) + "\n")
    report(ReportConfig(run=(run,), out=tmp_path / "page.html"))
    assert "held-out accuracy, epoch 3" in Page(tmp_path / "page.html").text


def test_a_run_under_way_with_half_a_line(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", done=2, epochs=10)
    with (run / "log.jsonl").open("a") as file:
        file.write('{"step": 21, "epo')
    page = page_of(run, tmp_path / "page.html")
    assert "2 of 10 epochs done, stopped" in page.text
    assert "estimated time left" in page.text
    assert "1 min 40 s" in page.text  # 8 epochs of 12.5 s
    assert "cannot be read" not in page.text


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text("epochs = 3\n")
    page = page_of(tmp_path / "run", tmp_path / "page.html")
    assert page.text.count("nothing logged yet") == 5
    assert "0 of 3 epochs done" in page.text


def test_a_single_epoch_is_a_dot(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(json.dumps(epoch_line(0)) + "\n")
    page = page_of(tmp_path, tmp_path / "page.html")
    paths = [attributes["d"] for tag, attributes in page.elements if tag == "path"]
    assert [(path.split()[0], path[-2:]) for path in paths] == [("M500.0", "h0")] * 4  # in the middle of its epoch


def test_a_long_run_stays_small_and_says_how(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with (run / "log.jsonl").open("w") as file:
        for step in range(1, 100_001):
            file.write(json.dumps(step_line(step, step / 250)) + "\n")
            if step % 250 == 0:
                file.write(json.dumps(epoch_line(step // 250 - 1)) + "\n")
    out = tmp_path / "page.html"
    result = report(ReportConfig(run=run, out=out))
    assert (result.logged_steps, result.thinned_by) == (100_000, 250)
    assert result.size_bytes < 250_000
    assert "each point is the mean of 250 values, the band is their range" in Page(out).text


EVIL = "\"><script>alert(1)</script><img src=x onerror=alert(2)>'&amp;"


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    run = write_run(tmp_path / EVIL.replace("/", "|"), done=3)
    with (run / "config.toml").open("a") as file:
        file.write(f"{json.dumps(EVIL)} = {json.dumps(EVIL)}\nlist = [{json.dumps(EVIL)}]\n")
    (run / "environment.json").write_text(json.dumps({EVIL: {EVIL: EVIL}, "lone \ud800": "\udcff\x1b[31m"}))
    (run / "unreadable.tsv").write_text(f"file\treason\n{EVIL}\t{EVIL}\n")
    with (run / "log.jsonl").open("a") as file:
        file.write(json.dumps(step_line(99, 3.5) | {"loss": EVIL, EVIL: EVIL}) + "\n")
        file.write(json.dumps({"preview": EVIL, "psnr": EVIL}) + "\n")
    page = page_of(run, tmp_path / "page.html")
    assert page.text.count("<script>alert(1)</script>") >= 6
    assert "\x1b" not in page.text


def test_settings_without_end_are_cut(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", done=3, previews=0)
    many = "".join(f"key{number} = {number}\n" for number in range(5000))
    (run / "config.toml").write_text(f"{many}long = {json.dumps('x' * 10**6)}\nlist = {list(range(10**5))}\n")
    (run / "environment.json").write_text(
        '{"deep": ' + "[" * 900 + "]" * 900 + ', "tables": ' + '{"a":' * 400 + "1" + "}" * 401
    )
    (run / "unreadable.tsv").write_text("file\treason\n" + "".join(f"{'y' * 5000}\t{'z' * 5000}\n" for _ in range(99)))
    page = page_of(run, tmp_path / "page.html")
    assert "and 4,802 more" in page.text
    assert "and 49 more, in the run's unreadable.tsv" in page.text
    assert (tmp_path / "page.html").stat().st_size < 300_000


def test_the_page_may_reach_nobody(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run"), tmp_path / "page.html")
    (policy,) = [attributes["content"] for tag, attributes in page.elements if attributes.get("http-equiv") is not None]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert not re.findall(r"https?:|url\(|@import", (tmp_path / "page.html").read_text())


def test_images_are_chosen_evenly(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", done=9, previews=9)
    page = page_of(run, tmp_path / "page.html", images=3)
    captions = [attributes["alt"] for tag, attributes in page.elements if tag == "img"]
    assert [caption.split(",")[0] for caption in captions] == ["after 1 epoch", "after 5 epochs", "after 9 epochs"]
    assert "3 of 9 previews, as JPEG" in page.text
    assert "9 previews exist, none is shown" in page_of(run, tmp_path / "page.html", images=0).text


def test_a_broken_preview_is_said_and_passed_over(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", done=3)
    (run / "previews" / "epoch-0002.png").write_bytes(b"\x89PNG\r\n\x1a\n half an image")
    out = tmp_path / "page.html"
    result = report(ReportConfig(run=run, out=out))
    assert result.images == 2
    assert "epoch-0002.png" in result.notes[0]
    assert "epoch-0002.png" in Page(out).text


def test_waiting_and_lost_numbers_are_pointed_out(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        epoch_line(0) | {"data_wait": 0.7},
        step_line(1, 1.0) | {"loss": None},
        {"skipped": True},
        {"other": 1},
    ]
    lines += [{"left_out": True}, {"rolled_back_to": "x"}]
    (tmp_path / "log.jsonl").write_text("nonsense\nmore\n" + "".join(json.dumps(line) + "\n" for line in lines))
    text = page_of(tmp_path, tmp_path / "page.html").text
    assert "70% of the time is spent waiting for images" in text
    assert "1 lines of the log have a non-finite loss" in text
    assert "2 lines of the log have an unknown kind and are not shown" in text
    assert "2 lines of the log cannot be read" in text
    assert "1 step was skipped" in text
    assert "returned to a saved state 1 times" in text


def test_the_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, out = write_run(tmp_path / "run"), tmp_path / "page.html"
    out.write_text("before")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ConfigError, match="No space left on device"):
        report(ReportConfig(run=run, out=out))
    assert out.read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "run"]


@pytest.mark.parametrize("out", ["page.pdf", "page", "none/page.html"])
def test_an_output_that_cannot_be(out: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"--out"):
        report(ReportConfig(run=run, out=tmp_path / out))


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_previews_as_an_animation(tmp_path: Path, suffix: str) -> None:
    run = write_run(tmp_path / "run", done=12, epochs=12, previews=4)
    path = tmp_path / f"run{suffix}"
    result = report(ReportConfig(run=run, out=tmp_path / "report.html", images=1, animate=path))
    assert result.animation == path
    with Image.open(path) as film:
        assert film.n_frames == 4
        assert film.info["loop"] == 0
    (run / "previews" / "epoch-0006.png").write_bytes(b"no image")
    result = report(ReportConfig(run=run, out=tmp_path / "report.html", animate=path))
    with Image.open(path) as film:
        assert film.n_frames == 3
    assert len([note for note in result.notes if "epoch-0006.png" in note]) == 1
    with pytest.raises(ConfigError, match="is a file of the run itself"):
        report(ReportConfig(run=run, out=tmp_path / "report.html", animate=path.replace(run / path.name)))
    bare = write_run(tmp_path / "bare", previews=0)
    with pytest.raises(ConfigError, match="no readable preview"):
        report(ReportConfig(run=bare, out=tmp_path / "none.html", animate=path))
    assert not (tmp_path / "none.html").exists()


def test_a_folder_that_is_no_run_is_not_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be a data set of millions of images, or all of a disk."""
    (tmp_path / "photos").mkdir()
    monkeypatch.setattr(Path, "rglob", unittest.mock.Mock(side_effect=AssertionError))
    with pytest.raises(DataError, match="photos is not a run folder"):
        report(ReportConfig(run=(tmp_path / "photos",), out=tmp_path / "report.html"))
