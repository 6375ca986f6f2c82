"""``pretrain --val --probe``: the plan shows the cost, ``watch`` the results, and bad data is an early error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mae.evaluation import linear
from tests.cli.at_terminal import run_at
from tests.cli.small import SIZES
from tests.unit.evaluation.small import class_folders

SHORT = [
    *SIZES, "--image-size", "16", "--patch-size", "8", "--epochs", "1", "--warmup-epochs", "0", "--batch-size", "6",
    "--workers", "0", "--device", "cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def flowers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return class_folders(tmp_path_factory.mktemp("probes") / "flowers", 6)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The accuracy of the probe is tested elsewhere."""
    monkeypatch.setattr(linear, "MOST_STEPS", 1)


def test_the_plan_the_run_and_who_watches(flowers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ["pretrain", flowers, *SHORT, "--val", flowers, "--probe", flowers]
    planned = json.loads(run_at(*asked, "--dry-run", "--json").out)
    assert not list(tmp_path.iterdir())
    plan = planned["probes"]
    assert (plan["val_images"], plan["train_images"], plan["test_images"], plan["classes"]) == (16, 12, 6, 3)
    assert plan["seconds"] == pytest.approx(plan["val_seconds"] + plan["probe_seconds"])
    assert planned["seconds"] > plan["seconds"] > 0

    seen = run_at(*asked)
    assert seen.code == 0, seen.err
    for words in (
        "loss of 16 held-out images every epoch",
        "12 + 6 images of 3 classes every 20 epochs",
        "; both ",
    ):
        assert words in seen.err.replace("\n", " ")
    assert "before training: held-out loss " in seen.err
    assert "epoch 1: held-out loss " in seen.err
    assert "k-NN " in seen.out

    last = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-2])
    watched = json.loads(run_at("watch", "run", "--once", "--json").out)
    for name in ("val_loss", "knn", "linear", "rank_me"):
        assert watched[name] == last[name]
    assert f"held-out loss     {last['val_loss']:.4f}" in run_at("watch", "run", "--once").out


def test_bad_data_leaves_no_folder(flowers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seen = run_at("pretrain", flowers, *SHORT, "--probe", flowers / "red")
    assert seen.code == 3
    assert f"--probe {flowers / 'red'}: there are no class folders" in seen.err.replace("\n", " ")
    assert run_at("pretrain", flowers, *SHORT, "--probe", flowers / "none").code == 3
    assert run_at("pretrain", flowers, *SHORT, "--val", flowers / "none").code == 3
    assert not list(tmp_path.iterdir())
