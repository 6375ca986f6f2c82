"""What the tests of the training loop share."""

from __future__ import annotations

from pathlib import Path

import pytest

from mae.training.config import PretrainConfig
from tests.unit.training.small import make_models_small, make_pictures, small_config


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of eleven."""
    return make_pictures(tmp_path / "pictures")


@pytest.fixture
def config(pictures: Path, tmp_path: Path) -> PretrainConfig:
    """A run of nine steps."""
    return small_config(pictures, tmp_path / "run")


@pytest.fixture
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of one block."""
    make_models_small(monkeypatch)
