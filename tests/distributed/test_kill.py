"""``kill -9`` at any moment: a restarted run resumes and ends bit for bit as an uninterrupted run."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
import torch

from mae.checkpoints import load_checkpoint
from tests.distributed.test_ranks import SMALL, logged
from tests.processes import ROOT, environment, finish, fork


def command(out: Path, epochs: int, *options: str) -> list[str]:
    """A state after every step, so that most kills come while one is being written."""
    return [
        SMALL, "pretrain", str(ROOT / "sample_images"),
        "--variant", "vit_tiny", "--image-size", "32", "--patch-size", "8", "--batch-size", "4", "--accum-iter", "2",
        "--warmup-epochs", "1", "--lr", "2e-3", "--workers", "1", "--device", "cpu", "--precision", "fp32",
        "--log-every", "1", "--preview-every", "7", "--save-every", "5", "--save-minutes", "0", "--auto-resume",
        "--epochs", str(epochs), "--out", str(out), *options,
    ]  # fmt: skip


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


EPOCHS = 24


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return run_to_its_end(out, EPOCHS)


def run_to_its_end(out: Path, epochs: int) -> Path:
    done = finish(fork(*command(out, epochs)), timeout=600)
    assert done.returncode == 0, done.stderr
    return out


def assert_same(first: Path, second: Path) -> None:
    """The same weights, bit for bit, and the same log."""
    states = [load_checkpoint(run / "checkpoint-last.pth").state for run in (first, second)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert logged(first) == logged(second)


def test_a_run_killed_before_its_first_state_begins_again(tmp_path: Path, whole: Path) -> None:
    """Killed as soon as its settings are written, and again during its steps; --resume alone is enough."""
    killed = tmp_path / "killed"
    first = command(killed, EPOCHS, "--save-minutes", "5", "--save-every", "1000", "--workers", "0")
    again = [*first[:2], "--resume", str(killed)]
    for place, words in (("config", first), ("5", again)):
        done = finish(fork(*words, env=environment(KILL_AT=place)))
        assert done.returncode == -9, done.stderr
        assert (killed / "config.toml").exists()
        assert not list(killed.glob("checkpoint*"))
    assert max(entry.get("step", 0) for entry in logged(killed)) == 5
    done = finish(fork(*again))
    assert done.returncode == 0, done.stderr
    assert_same(whole, killed)


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_a_run_killed_again_and_again_ends_as_if_it_had_not_been(tmp_path: Path, kills: int, whole: Path) -> None:
    epochs = EPOCHS if kills < 10 else 400
    killed = tmp_path / "killed"
    if epochs != EPOCHS:
        whole = run_to_its_end(tmp_path / "whole", epochs)
    chance = random.Random(kills)
    done = 0
    while True:
        before = size(killed / "log.jsonl")
        process = fork(*command(killed, epochs))
        if done < kills:
            # Some kills are during the start, when the folder is prepared, most during training.
            end = time.monotonic() + (chance.uniform(0.05, 0.5) if chance.random() < 0.3 else 120)
            while process.poll() is None and time.monotonic() < end and size(killed / "log.jsonl") <= before + 200:
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.2))
            process.kill()
        ended = finish(process, timeout=600)
        if ended.returncode == 0:
            break
        assert ended.returncode == -9, ended.stderr
        done += 1
    assert done >= kills - 1
    assert_same(whole, killed)
    names = [sorted(path.name for path in run.rglob("*") if path.is_file()) for run in (whole, killed)]
    assert names[0] == names[1]
    for image in (whole / "previews").iterdir():
        assert image.read_bytes() == (killed / "previews" / image.name).read_bytes()
