"""The page of ``evaluate`` in a real browser: nothing complained of, nobody asked, nothing cut off."""

from __future__ import annotations

from pathlib import Path

import pytest

from mae.evaluation.config import EvaluateConfig
from mae.evaluation.evaluate import evaluate
from tests.browser.chromium import Chromium, find_chromium
from tests.unit.evaluation.small import checkpoint, class_folders

BROWSER = find_chromium()
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium found: install one, or name it in CHROMIUM"),
]


@pytest.mark.parametrize("width", [360, 1200])
def test_everything_is_there_to_see(tmp_path: Path, width: int) -> None:
    class_folders(tmp_path / "colours", 10)
    weights = checkpoint(tmp_path / "tiny.pth")
    out = tmp_path / "page.html"
    evaluate(
        EvaluateConfig(
            data=tmp_path / "colours",
            checkpoint=(weights,),
            cache=tmp_path / "cache",
            report=out,
            probe=("knn", "linear"),
            device="cpu",
            workers=0,
        )
    )
    with Chromium(str(BROWSER), tmp_path / "profile") as chromium:
        chromium.show(width=width, dark=False)
        chromium.open(out)
        assert chromium.evaluate("document.querySelectorAll('circle').length") == 6
        assert chromium.evaluate("[...document.images].every(one => one.complete && one.naturalWidth > 0)")
        assert chromium.evaluate("document.documentElement.scrollWidth") <= width
        assert not chromium.complaints
        assert all(one.startswith(("file:", "data:")) for one in chromium.requests)
