"""Signals end a run in good order, and its exit code says which one it was."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from mae.checkpoints import load_checkpoint
from tests.distributed.test_kill import command, environment, logged


def started(out: Path) -> subprocess.Popen[str]:
    """A long run that has done some steps."""
    process = subprocess.Popen(
        command(out, 20000, "--save-minutes", "5", "--preview-every", "0", "--save-every", "20000"),
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    end = time.monotonic() + 120
    while not (out / "log.jsonl").exists() or (out / "log.jsonl").stat().st_size < 1000:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
    return process


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 138)])
def test_a_signal_saves_and_says_which_it_was(tmp_path: Path, name: str, code: int) -> None:
    process = started(tmp_path / "run")
    process.send_signal(getattr(signal, name))
    _, talk = process.communicate(timeout=60)
    assert process.returncode == code, talk
    assert f"stopped and saved; go on with: maecli pretrain --resume {tmp_path / 'run'}" in talk
    position = load_checkpoint(tmp_path / "run" / "checkpoint-last.pth").extra["maecli"]["position"]
    assert position["step"] == max(entry.get("step", 0) for entry in logged(tmp_path / "run"))


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_before_training_one_signal_is_enough(tmp_path: Path, name: str, code: int) -> None:
    """While pictures are looked for, or fetched, there is nothing to save."""
    process = subprocess.Popen(
        command(tmp_path / "run", 2), env={**environment(), "ENDLESS_SCAN": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    assert process.stderr.readline() == "scanning\n"
    process.send_signal(getattr(signal, name))
    _, talk = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in talk
    assert not (tmp_path / "run").exists()


def test_a_second_signal_leaves_at_once(tmp_path: Path) -> None:
    process = started(tmp_path / "run")
    process.send_signal(signal.SIGSTOP)  # so that both are there before the run can act on the first
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    _, talk = process.communicate(timeout=60)
    assert process.returncode == 143  # that of the second
    assert "Traceback" not in talk
    assert f"go on from the last save with: maecli pretrain --resume {tmp_path / 'run'}" in talk
    assert not (tmp_path / "run" / "checkpoint-last.pth").exists()
