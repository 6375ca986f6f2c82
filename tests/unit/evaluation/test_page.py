"""The page of ``evaluate``: it is complete, contains no active content, and escapes all names."""

from __future__ import annotations

import base64
import html.parser
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mae.errors import ConfigError
from mae.evaluation import linear
from mae.evaluation.config import EvaluateConfig
from mae.evaluation.evaluate import evaluate
from mae.evaluation.gallery import Gallery, _of_each_class, _plane
from mae.evaluation.page import MOST_CONFUSED, page
from mae.evaluation.results import Accuracy, ClassAccuracy, EvaluateResult, Headline, Row, Scores, Seconds
from tests.unit.evaluation.small import checkpoint, image

HOSTILE = "<script>alert(1)</script>&\"'"


class Reader(html.parser.HTMLParser):
    """Counts elements and collects their attributes and text; fails on an end tag without a start tag."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.found if found == tag]


def read(document: str) -> Reader:
    reader = Reader()
    reader.feed(document)
    assert not reader.open
    return reader


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EvaluateResult]:
    """Images of two colours; the name of one class is markup."""
    world = tmp_path_factory.mktemp("page")
    for number in range(10):
        image(world / "colours" / "red" / f"{number}.png", (200, 40, 40), number)
        image(world / "colours" / HOSTILE.replace("/", "_") / f"{number}.png", (40, 40, 200), 50 + number)
    config: dict[str, Any] = {"device": "cpu", "workers": 0, "probe": ("knn", "linear"), "references": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "MOST_STEPS", 8)  # the accuracy of the probe is tested elsewhere
        result = evaluate(
            EvaluateConfig(
                data=world / "colours",
                checkpoint=(checkpoint(world / "tiny.pth"),),
                cache=world / "cache",
                report=world / "page.html",
                **config,
            )
        )
    return world / "page.html", result


def test_everything_is_on_it(made: tuple[Path, EvaluateResult]) -> None:
    document = made[0].read_text(encoding="utf-8")
    reader = read(document)
    assert len(reader.of("circle")) == 4  # each test image
    images = reader.of("img")
    assert len(images) == 4 * (1 + 5)
    first = Image.open(io.BytesIO(base64.b64decode(str(images[0]["src"]).partition(",")[2])))
    assert first.size == (16, 16)
    text = " ".join(reader.text)
    assert made[1].headline is not None
    assert f"{100 * made[1].headline.linear.value:.1f}" in text
    assert "mean of patches, no norm" in text
    assert "k-NN, 10" in text
    assert "attentive" not in text  # it was not asked for


def test_nothing_in_it_can_run_and_nobody_is_asked(made: tuple[Path, EvaluateResult]) -> None:
    document = made[0].read_text(encoding="utf-8")
    reader = read(document)
    assert not reader.of("script")
    assert "alert(1)" in " ".join(reader.text)
    policy = next(one["content"] for one in reader.of("meta") if one.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    for tag, attributes in reader.found:
        assert not any(name.startswith("on") for name in attributes), tag
        assert "href" not in attributes
        assert str(attributes.get("src", "data:")).startswith("data:image/jpeg;base64,") or "src" not in attributes


def many(classes: int) -> EvaluateResult:
    """A result with this many classes, made by hand."""
    some = Accuracy(0.5, 0.4, 0.6)
    confusion = np.eye(classes, dtype=int) * 3
    confusion[0, classes - 1] = 9
    headline = Headline(
        "x.pth",
        "mean",
        "final",
        some,
        0.5,
        tuple(ClassAccuracy(f"class {number}", 3, some) for number in range(classes)),
        tuple(tuple(int(count) for count in row) for row in confusion),
    )
    row = Row("x.pth", "checkpoint", "mean", "final", 8, 1.0, None, (Scores(1.0, 9, {20: some}, None, None),))
    return EvaluateResult(
        data=Path(HOSTILE),
        train_images=9,
        test_images=9,
        classes=tuple(one.name for one in headline.classes),
        split="seed",
        precision="fp32",
        device="cpu",
        rows=(row,),
        headline=headline,
        report=None,
        seconds=Seconds(1, 1, 1),
        skipped=((HOSTILE, HOSTILE),) * 99,
        notes=(HOSTILE,),
    )


@pytest.mark.parametrize("classes", [2, MOST_CONFUSED, MOST_CONFUSED + 1, 1000])
def test_any_number_of_classes(classes: int) -> None:
    """A confusion matrix for few classes; for many, the confused pairs, most frequent first."""
    document = page(many(classes), Gallery((), (), (0.5, 0.25)), "mean of patches", 0.0)
    reader = read(document)
    text = " ".join(reader.text)
    assert ("true \\ predicted" in text) == (classes <= MOST_CONFUSED)
    assert f"class {classes - 1}" in text
    assert ("k-NN, 20" in text, "RankMe" in text, "alpha" in text, "attentive" in text) == (True, True, False, False)
    assert len(document) < 200_000
    assert not reader.of("script")


def test_strips_take_turns_over_the_classes() -> None:
    labels = np.repeat(np.arange(3), (50, 5, 2))
    chosen = labels[_of_each_class(labels, 6, 0)]
    assert np.bincount(chosen).tolist() == [2, 2, 2]
    assert (np.diff(chosen) >= 0).all()


def test_the_plane_is_that_of_the_largest_variance() -> None:
    features = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([9.0, 1, 1, 30, 1, 1]) + 5
    points, explained = _plane(features, np.zeros(50, dtype=np.int64), 0)
    values = np.linalg.eigvalsh(np.cov(features.double().numpy().T))
    assert explained == pytest.approx((values[-1] / values.sum(), values[-2] / values.sum()))
    shown = np.array([point.x for point in points])
    assert abs(np.corrcoef(shown, features[:, 3].numpy())[0, 1]) > 0.98
    assert shown.min() == 0
    assert shown.max() == 1


def test_an_input_is_not_written_over(tmp_path: Path) -> None:
    checkpoint(tmp_path / "tiny.html")
    with pytest.raises(ConfigError, match=r"--report .* is a checkpoint itself"):
        evaluate(EvaluateConfig(data=tmp_path, checkpoint=(tmp_path / "tiny.html",), report=tmp_path / "tiny.html"))
