"""Small classifiers on small images of three colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mae.training.classifier_config import FinetuneConfig, LinprobeConfig
from tests.unit.evaluation.small import checkpoint, class_folders


def make_data(folder: Path) -> Path:
    """Eight training and four test images of each of three classes."""
    class_folders(folder / "train", 8)
    class_folders(folder / "test", 4, seed=1)
    return folder


def settings(folder: Path) -> dict[str, Any]:
    """Three epochs of three steps each: five batches of four images, with two, two and one batch per step."""
    return {
        "data": (folder / "data",), "init": checkpoint(folder / "encoder.pth"), "epochs": 3, "warmup_epochs": 1.0,
        "batch_size": 4, "accum_iter": 2, "lr": 2e-3, "workers": 0, "device": "cpu", "precision": "fp32",
        "log_every": 1, "out": folder / "run",
    }  # fmt: skip


@pytest.fixture
def finetuning(tmp_path: Path) -> FinetuneConfig:
    """Without timm, which takes seconds to import."""
    make_data(tmp_path / "data")
    return FinetuneConfig(**settings(tmp_path), augmenter="torchvision", aa="none", reprob=0.0)


@pytest.fixture
def probing(tmp_path: Path) -> LinprobeConfig:
    """A short linear probing run."""
    make_data(tmp_path / "data")
    return LinprobeConfig(**settings(tmp_path) | {"lr": 5.0})
