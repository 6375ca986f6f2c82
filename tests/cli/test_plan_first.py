"""Output before and after a run: dry runs, presets, advice, and whether the model learnt anything."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cli.at_terminal import run_at
from tests.cli.small import SIZES

IMAGES = ["--image-size", "32", "--patch-size", "8", "--workers", "0", "--device", "cpu"]
TINY = ["--variant", "vit_tiny", *SIZES, *IMAGES]
SHORT = [*TINY, "--epochs", "2", "--warmup-epochs", "0", "--batch-size", "4", "--precision", "fp32"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    stream = np.random.default_rng(0)
    for number in range(8):
        pixels = stream.integers(0, 256, (3, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((48, 40), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def planned(*arguments: str | Path) -> dict[str, Any]:
    seen = run_at("pretrain", *arguments, "--dry-run", "--json")
    assert seen.code == 0, seen.err
    return dict(json.loads(seen.out))


def test_a_dry_run_prints_the_plan_and_leaves_nothing(photos: Path, here: Path) -> None:
    seen = run_at("pretrain", photos, *TINY, "--dry-run", "--tensorboard")
    assert seen.code == 0
    for part in ("8 found", "warm-up 40 of 800 epochs", "steps          800 (1 an epoch)", "folder         run"):
        assert part in seen.out
    assert "warning: 800 steps in all; a model shows little after fewer than 1,000; try --epochs 1000" in seen.err
    assert "warning: the learning rate is 4.7e-06" in seen.err
    assert list(here.iterdir()) == []
    assert re.search(r"cpu, (bf|fp)(16|32) \((bf16|fp32) products timed at [\d.]+ times the speed of", seen.out)
    quiet = run_at("pretrain", photos, *TINY, "--dry-run", "--quiet")
    assert quiet.out.strip().isdigit()
    assert (quiet.code, quiet.err) == (0, "")


def test_a_dry_run_is_one_document(photos: Path, here: Path) -> None:
    document = planned(photos, *SHORT)
    assert document["dry_run"] is True
    assert (document["precision"], document["precision_reason"]) == ("fp32", None)  # given
    assert document["plan"]["total_steps"] == 4
    assert document["config"]["epochs"] == 2
    assert document["config"]["data"] == [str(photos)]
    assert "resume" not in document["config"]
    assert document["seconds"] == pytest.approx(4 * document["batch_seconds"])
    assert {advice["check"] for advice in document["advice"]} == {"steps", "learning rate"}
    assert all(advice["options"].startswith("--") for advice in document["advice"])
    assert list(here.iterdir()) == []


def test_a_dry_run_of_a_run_that_goes_on_changes_nothing_in_it(photos: Path, here: Path) -> None:
    assert run_at("pretrain", photos, *SHORT, "--out", "run").code == 0
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    document = planned("--resume", "run", "--epochs", "3")
    assert document["first_step"] == 4
    assert document["advice"] == []  # the settings can no longer be changed
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before
    seen = run_at("pretrain", photos, *SHORT, "--dry-run")  # the same error as without --dry-run
    assert seen.code == 2
    assert "already holds a run" in seen.err


def test_a_preset_fills_defaults_and_the_run_records_them(photos: Path, here: Path) -> None:
    seen = run_at("pretrain", photos, "--preset", "small", "--image-size", "32", "--epochs", "1", "--workers", "0")
    assert seen.code == 0, seen.err
    assert "note: preset small: --variant vit_tiny --patch-size 16 --crop-scale 0.5 1" in " ".join(seen.err.split())
    settings = tomllib.loads((here / "run" / "config.toml").read_text())
    assert (settings["variant"], settings["lr"], settings["batch_size"]) == ("vit_tiny", 1.5e-3, 48)
    assert (settings["image_size"], settings["epochs"]) == ([32, 32], 1)  # typed
    assert "preset" not in settings
    repeated = planned("--config", "run/config.toml", "--out", "again")["config"]
    assert repeated | {"out": settings["out"], "decoder": settings["decoder"]} == settings


def test_what_is_typed_wins_over_a_file_and_that_over_the_preset(photos: Path, here: Path) -> None:
    (here / "settings.toml").write_text('preset = "small"\nepochs = 7\nbase_lr = 1e-3\nimage_size = 32\n')
    document = planned(photos, "--config", "settings.toml", "--workers", "0", "--warmup-epochs", "1")
    config = document["config"]
    assert (config["variant"], config["epochs"], config["warmup_epochs"]) == ("vit_tiny", 7, 1)
    assert "lr" not in config  # the file's base_lr overrides the preset's lr
    assert document["plan"]["lr"] == pytest.approx(1e-3 * 8 / 256)
    typed = planned(photos, "--config", "settings.toml", "--workers", "0", "--lr", "3e-4", "--epochs", "2")
    assert (typed["plan"]["lr"], typed["config"]["epochs"]) == (3e-4, 2)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["{photos}", "--preset", "smal"],
            2,
            "--preset must be one of small, fast; got 'smal'\nhint: did you mean small?",
        ),
        (
            ["{photos}", "--preset", "small", "--min-lr", "1"],
            2,
            "--min-lr 1 is above --lr 0.0015 (set in the preset small)",
        ),
        (["{photos}", "--val", "nofile"], 3, "error: --val nofile: no such folder"),
        (["{photos}", "--val", "empty"], 3, "error: --val no image in empty"),
    ],
)
def test_mistakes_are_named_and_leave_no_folder(
    arguments: list[str], code: int, message: str, photos: Path, here: Path
) -> None:
    (here / "empty").mkdir()
    seen = run_at("pretrain", *(argument.format(photos=photos) for argument in arguments), *IMAGES)
    assert (seen.code, seen.out) == (code, "")
    assert message in seen.err
    assert not (here / "run").exists()


def test_a_preset_is_for_a_new_run(photos: Path, here: Path) -> None:
    assert run_at("pretrain", photos, *SHORT, "--epochs", "1").code == 0
    seen = run_at("pretrain", "--resume", "run", "--preset", "small")
    assert seen.code == 2
    assert "error: --preset small: a resumed run keeps its settings\nhint: drop --preset\n" in seen.err


def test_a_run_that_learnt_nothing_says_so(photos: Path, here: Path) -> None:
    seen = run_at("pretrain", photos, *SHORT, "--lr", "1e-9")
    assert seen.code == 0
    assert "where predicting zero costs 0.99" in seen.out
    assert "(helped by the original's mean and std)" in seen.out
    assert "(helped by the original's mean and std)" in seen.err  # in the line about the preview
    assert seen.out.splitlines()[-1].startswith("The model has learnt almost nothing: ")
    document = json.loads(run_at("pretrain", photos, *SHORT, "--lr", "1e-9", "--out", "again", "--json").out)
    assert document["learnt"] is False
    assert document["psnr_uses_original"] is True
    assert document["zero_prediction_loss"] == pytest.approx(191 / 192, rel=0.01)
    assert document["train_loss"] > 0.9 * document["zero_prediction_loss"]


def test_a_run_that_learnt_something_does_not(photos: Path, here: Path) -> None:
    more = ["--epochs", "20", "--lr", "2e-3", "--no-norm-pix-loss", "--preview-every", "20"]
    seen = run_at("pretrain", photos, *SHORT, *more)
    assert seen.code == 0
    assert "almost nothing" not in seen.out
    assert "helped by the original" not in seen.both
    lines = [json.loads(line) for line in (here / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["psnr_uses_original"] for line in lines if "preview" in line] == [False]
