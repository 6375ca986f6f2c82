"""The result of a training command in a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from mae.training.events import PretrainResult
from maecli.output import Output
from maecli.views.training import show_pretraining


@pytest.mark.parametrize(
    ("hits", "line"),
    [
        (0.0, "cache       0% of the last epoch's images were in it; JPEGs that can be decoded at a reduced size are "
        "not kept"),
        (0.5, "cache       50% of the last epoch's images were in it"),
        (None, None),
    ],
)  # fmt: skip
def test_a_cache_that_gave_nothing_says_why(
    hits: float | None, line: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    result = PretrainResult(
        run=Path("run"), checkpoint=Path("run/checkpoint-last.pth"), preview=None, epochs=1, steps=2, train_loss=0.5,
        zero_prediction_loss=None, psnr=None, psnr_uses_original=False, seconds=1.0, stopped=False, cache_hits=hits,
    )  # fmt: skip
    show_pretraining(result, Output())
    printed = [one for one in capsys.readouterr().out.splitlines() if one.startswith("cache")]
    assert printed == ([line] if line else [])
