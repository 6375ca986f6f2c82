"""Fixtures of the tests of the training loop."""

from __future__ import annotations

from pathlib import Path

import pytest

from mae.training.config import PretrainConfig
from tests.unit.training.small import make_images, make_models_small, small_config


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of eleven images."""
    return make_images(tmp_path / "images")


@pytest.fixture
def config(images: Path, tmp_path: Path) -> PretrainConfig:
    """A run of nine steps."""
    return small_config(images, tmp_path / "run")


@pytest.fixture
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of one block."""
    make_models_small(monkeypatch)
