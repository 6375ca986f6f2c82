"""Older names of options are accepted on the command line and in files, but not shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cli.at_terminal import run_at
from tests.cli.small import SIZES

SHORT = [
    *SIZES, "--image-size", "32", "--patch-size", "8", "--workers", "0", "--device", "cpu", "--epochs", "2",
    "--batch-size", "2",
]  # fmt: skip
NAMES = {"pretrain": ("--recompute", "--activation-checkpointing"), "report": ("--pictures", "--images")}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), dtype=np.uint8)
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{number}.png")
    return folder


def checkpointing(*arguments: str | Path) -> Any:
    seen = run_at("pretrain", *arguments, "--dry-run", "--json")
    assert seen.code == 0, seen.err
    return json.loads(seen.out)["config"]["activation_checkpointing"]


@pytest.mark.parametrize(("command", "names"), NAMES.items())
def test_help_shows_the_new_name_only(command: str, names: tuple[str, str]) -> None:
    old, new = names
    shown = run_at(command, "--help").out
    assert new in shown
    assert old not in shown


def test_an_older_name_is_typed(photos: Path, tmp_path: Path) -> None:
    assert checkpointing(photos, *SHORT, "--recompute") is True
    assert checkpointing(photos, *SHORT) is False
    seen = run_at("pretrain", photos, "--recompute", "--no-activation-checkpointing", "--dry-run")
    assert seen.code == 2
    assert "--recompute is the older name of --activation-checkpointing" in seen.err
    seen = run_at("report", tmp_path, "--pictures", "101")
    assert seen.code == 2
    assert "--images must be at least 0 and at most 100; got 101" in seen.err


def test_an_older_name_stands_in_a_file(photos: Path, tmp_path: Path) -> None:
    settings = tmp_path / "run.toml"
    settings.write_text("recompute = true\n")
    assert checkpointing(photos, *SHORT, "--config", settings) is True
    assert checkpointing(photos, *SHORT, "--config", settings, "--no-activation-checkpointing") is False
    assert checkpointing(photos, *SHORT, "--config", settings, "--no-recompute") is False


def test_a_run_whose_settings_have_an_older_name_goes_on(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = [*SHORT, "--warmup-epochs", "0", "--precision", "fp32", "--preview-every", "0", "--out", run]
    assert run_at("pretrain", photos, *options, "--recompute").code == 0
    written = run / "config.toml"
    assert "\nactivation_checkpointing = true\n" in written.read_text()
    written.write_text(written.read_text().replace("activation_checkpointing", "recompute"))
    assert checkpointing("--resume", run, "--epochs", "3") is True
