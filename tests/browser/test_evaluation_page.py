"""The page of ``evaluate`` in a real browser: no console messages, no requests, nothing cut off."""

from __future__ import annotations

from pathlib import Path

import pytest

from mae.evaluation import linear
from mae.evaluation.config import EvaluateConfig
from mae.evaluation.evaluate import evaluate
from tests.browser.chromium import Chromium, find_chromium
from tests.unit.evaluation.small import checkpoint, class_folders

BROWSER = find_chromium()
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium found: install one, or name it in CHROMIUM"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page that ``--report`` writes; the accuracy of the linear probe is tested elsewhere."""
    folder = tmp_path_factory.mktemp("evaluated")
    class_folders(folder / "colours", 10)
    config = EvaluateConfig(
        data=folder / "colours",
        checkpoint=(checkpoint(folder / "a_checkpoint_with_a_name_as_long_as_those_of_released_files_are.pth"),),
        cache=folder / "cache",
        report=folder / "page.html",
        probe=("knn", "linear"),
        device="cpu",
        workers=0,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "MOST_STEPS", 1)
        evaluate(config)
    return folder / "page.html"


@pytest.mark.parametrize("width", [360, 1200])
def test_everything_is_there_to_see(page: Path, tmp_path: Path, width: int) -> None:
    with Chromium(str(BROWSER), tmp_path / "profile") as chromium:
        chromium.show(width=width, dark=False)
        chromium.open(page)
        assert chromium.evaluate("document.querySelectorAll('circle').length") == 6
        assert chromium.evaluate("[...document.images].every(one => one.complete && one.naturalWidth > 0)")
        assert chromium.evaluate("document.documentElement.scrollWidth") <= width
        names = "[...document.querySelectorAll('.rows td:not(.n), .confusion th:first-child')]"
        assert chromium.evaluate(f"Math.min(...{names}.map(one => one.offsetWidth))") >= 128
        assert not chromium.complaints
        assert all(one.startswith(("file:", "data:")) for one in chromium.requests)
