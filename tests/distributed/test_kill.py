"""``kill -9`` at any moment: every restart goes on, and the end is the uninterrupted run's, bit for bit."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mae.checkpoints import load_checkpoint
from tests.processes import finish, fork

ROOT = Path(__file__).parents[2]


def command(out: Path, epochs: int, *options: str) -> list[str]:
    """A state after every step, so that most kills come while one is being written."""
    return [
        sys.executable, str(Path(__file__).parent / "small.py"), "pretrain", str(ROOT / "sample_images"),
        "--variant", "vit_tiny", "--image-size", "32", "--patch-size", "8", "--batch-size", "4", "--accum-iter", "2",
        "--warmup-epochs", "1", "--lr", "2e-3", "--workers", "1", "--device", "cpu", "--precision", "fp32",
        "--log-every", "1", "--preview-every", "7", "--save-every", "5", "--save-minutes", "0", "--auto-resume",
        "--epochs", str(epochs), "--out", str(out), *options,
    ]  # fmt: skip


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def logged(out: Path) -> list[dict[str, Any]]:
    timed = {"images_per_second", "data_wait", "seconds"}
    lines = (out / "log.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in timed} for line in lines]


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


EPOCHS = 24


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    out = tmp_path_factory.mktemp("whole") / "run"
    subprocess.run(command(out, EPOCHS), env=environment(), check=True, capture_output=True, timeout=600)
    return out


def assert_same(first: Path, second: Path) -> None:
    """The same weights, bit for bit, and the same log."""
    states = [load_checkpoint(run / "checkpoint-last.pth").state for run in (first, second)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert logged(first) == logged(second)


def test_a_run_killed_before_its_first_state_begins_again(tmp_path: Path, whole: Path) -> None:
    """Killed as soon as its settings are written, and again in its steps: a bare --resume is enough."""
    killed = tmp_path / "killed"
    first = command(killed, EPOCHS, "--save-minutes", "5", "--save-every", "1000", "--workers", "0")[1:]
    again = [*first[:2], "--resume", str(killed)]
    for place, words in (("config", first), ("5", again)):
        done = finish(fork(*words, env={**environment(), "KILL_AT": place}))
        assert done.returncode == -9, done.stderr
        assert (killed / "config.toml").exists()
        assert not list(killed.glob("checkpoint*"))
    assert max(entry.get("step", 0) for entry in logged(killed)) == 5
    done = finish(fork(*again, env=environment()))
    assert done.returncode == 0, done.stderr
    assert_same(whole, killed)


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_a_run_killed_again_and_again_ends_as_if_it_had_not_been(tmp_path: Path, kills: int, whole: Path) -> None:
    epochs = EPOCHS if kills < 10 else 400
    killed = tmp_path / "killed"
    if epochs != EPOCHS:
        whole = tmp_path / "whole"
        subprocess.run(command(whole, epochs), env=environment(), check=True, capture_output=True, timeout=600)
    chance = random.Random(kills)
    done = 0
    while True:
        before = size(killed / "log.jsonl")
        process = subprocess.Popen(
            command(killed, epochs), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        if done < kills:
            # Some of them within the start, where the folder is put in order, most within the training.
            end = time.monotonic() + (chance.uniform(1, 4) if chance.random() < 0.3 else 120)
            while process.poll() is None and time.monotonic() < end and size(killed / "log.jsonl") <= before + 200:
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.2))
            process.kill()
        _, talk = process.communicate(timeout=600)
        if process.returncode == 0:
            break
        assert process.returncode == -9, talk
        done += 1
    assert done >= kills - 1
    assert_same(whole, killed)
    names = [sorted(path.name for path in run.rglob("*") if path.is_file()) for run in (whole, killed)]
    assert names[0] == names[1]
    for picture in (whole / "previews").iterdir():
        assert picture.read_bytes() == (killed / "previews" / picture.name).read_bytes()
